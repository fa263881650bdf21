import { computed, reactive, ref, type Ref } from 'vue'
import { useI18n } from 'vue-i18n'
import type { Product } from '@/api/client'

/** What an admin edits of a product as one thing; stock and being active are actions of their own. */
export const FIELDS = ['name', 'sku', 'price', 'category', 'image_url', 'description'] as const
export type Field = (typeof FIELDS)[number]
export type Draft = Record<Field, string>
export type Values = Record<Exclude<Field, 'category' | 'image_url' | 'description'>, string> &
  Record<'category' | 'image_url' | 'description', string | null>

export const MAX_INT = 2 ** 31 - 1
const CONTROLS = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/
const IMAGE_URL = /^(https:\/\/[^\s/?#\\]+\S*|(?!\/\/)(?![^/?#]*:)[^\s\\]+)$/

/** "12,5" and "12.50" alike: the API's "12.50". Null for what is no price. */
export function readPrice(text: string): string | null {
  const [, whole, cents = ''] = /^0*(\d{1,10})(?:[.,](\d{1,2}))?$/.exec(text.trim()) ?? []
  return whole === undefined ? null : `${whole}.${cents.padEnd(2, '0')}`
}

export const isSameText = (one: Values, other: Values) => FIELDS.every((field) => one[field] === other[field])

/**
 * base: the product as it was read; undefined for a new one. `draft` is what is typed, `changes` what of it the
 * server is to be sent, `errors` a sentence for each field that can't be sent.
 */
export function useAdminProduct(base: Ref<Product | undefined>) {
  const { t, locale } = useI18n()
  const refused = ref<Record<string, string>>({})
  const wasTried = ref(false)

  /** As one would type it. */
  function draftOf(product?: Values): Draft {
    const texts = Object.fromEntries(FIELDS.map((field) => [field, product?.[field] ?? ''])) as Draft
    return locale.value === 'de' ? { ...texts, price: texts.price.replace('.', ',') } : texts
  }
  const draft = reactive(draftOf(base.value))

  /** As the server would keep it. */
  const values = computed<Values>(() => ({
    name: draft.name.trim(),
    sku: draft.sku.trim().toUpperCase(),
    price: readPrice(draft.price) ?? draft.price,
    category: draft.category.trim() || null,
    image_url: draft.image_url.trim() || null,
    description: draft.description || null,
  }))
  const changes = computed(() => {
    const changed = FIELDS.filter((field) => values.value[field] !== (base.value ? base.value[field] : valuesOfNothing[field]))
    return Object.fromEntries(changed.map((field) => [field, values.value[field]])) as Partial<Values>
  })
  const isDirty = computed(() => Object.keys(changes.value).length > 0)

  const wrong = computed(() => {
    const { name, sku, price, category, image_url, description } = values.value
    const between = (text: string, least: number, most: number) => {
      const length = [...text].length
      if (!length) return t('field.required')
      if (length < least || length > most) return t('admin.product.between', { least, most })
      return CONTROLS.test(text) ? t('admin.product.oneLine') : ''
    }
    const atMost = (text: string | null, most: number) => ([...(text ?? '')].length > most ? t('admin.product.atMost', { most }) : '')
    const amount = readPrice(price)
    return Object.entries({
      name: between(name, 3, 200),
      sku: between(sku, 3, 50),
      price: !price ? t('field.required') : amount === null ? t('admin.product.priceForm') : /[1-9]/.test(amount) ? '' : t('admin.product.pricePositive'),
      category: atMost(category, 100) || (CONTROLS.test(category ?? '') ? t('admin.product.oneLine') : ''),
      image_url: image_url && !IMAGE_URL.test(image_url) ? t('admin.product.imageForm') : atMost(image_url, 500),
      description: atMost(description, 1000),
    }).filter(([, sentence]) => sentence)
  })
  const errors = computed<Record<string, string>>(() => ({
    ...(wasTried.value ? Object.fromEntries(wrong.value) : {}),
    ...refused.value,
  }))

  /** Whether it can be sent; from now on what is wrong is said. */
  function check() {
    wasTried.value = true
    refused.value = {}
    return !wrong.value.length
  }

  /** Shows the product. What was typed since `sent` went out stays. */
  function reset(product?: Values, sent: Draft = { ...draft }) {
    const shown = draftOf(product)
    for (const field of FIELDS) if (draft[field] === sent[field]) draft[field] = shown[field]
    refused.value = {}
    wasTried.value = false
  }

  return { draft, values, changes, isDirty, errors, refused, check, reset, draftOf }
}

const valuesOfNothing: Values = { name: '', sku: '', price: '', category: null, image_url: null, description: null }
