import { computed, reactive, ref, type Ref } from 'vue'
import { useI18n } from 'vue-i18n'
import type { Product } from '@/api/client'
import { characterCount, isFullyVisible, isVisibleLine } from '@/utils/visibleText'

/** The fields of one edit. Stock and active state are changed separately. */
export const FIELDS = ['name', 'sku', 'price', 'category', 'image_url', 'description'] as const
export type Field = (typeof FIELDS)[number]
export type Draft = Record<Field, string>
type Optional = 'sku' | 'category' | 'image_url' | 'description'
export type Values = Record<Exclude<Field, Optional>, string> & Record<Optional, string | null>

export const MAX_INT = 2 ** 31 - 1
const IMAGE_URL = /^(https:\/\/[^\s/?#\\]+\S*|(?!\/\/)(?![^/?#]*:)[^\s\\]+)$/

/** The API's "12.50" for both "12,5" and "12.50". Null for an invalid price. */
export function parsePrice(text: string): string | null {
  const [, whole, cents = ''] = /^0*(\d{1,10})(?:[.,](\d{1,2}))?$/.exec(text.trim()) ?? []
  return whole === undefined ? null : `${whole}.${cents.padEnd(2, '0')}`
}

export const hasSameFields = (one: Values, other: Values) => FIELDS.every((field) => one[field] === other[field])

/**
 * base: the product as read; undefined for a new one. `draft`: the typed texts. `changes`: the fields to send.
 * `errors`: a sentence for each invalid field.
 */
export function useAdminProductDraft(base: Ref<Product | undefined>) {
  const { t, locale } = useI18n()
  const serverErrors = ref<Record<string, string>>({})
  const wasSubmitted = ref(false)

  /** Formatted for editing in the chosen language. */
  function draftOf(product?: Values): Draft {
    const texts = Object.fromEntries(FIELDS.map((field) => [field, product?.[field] ?? ''])) as Draft
    return locale.value === 'de' ? { ...texts, price: texts.price.replace('.', ',') } : texts
  }
  const draft = reactive(draftOf(base.value))

  /** Normalized as by the server. */
  const values = computed<Values>(() => ({
    name: draft.name.trim().normalize(),
    sku: draft.sku.normalize('NFKC').trim().toUpperCase().normalize('NFKC') || null,
    price: parsePrice(draft.price) ?? draft.price,
    category: draft.category.trim().normalize() || null,
    image_url: draft.image_url.trim() || null,
    description: draft.description.normalize() || null,
  }))
  const changes = computed(() => {
    const changed = FIELDS.filter(
      (field) => values.value[field] !== (base.value ? base.value[field] : EMPTY_VALUES[field]),
    )
    return Object.fromEntries(changed.map((field) => [field, values.value[field]])) as Partial<Values>
  })
  const isDirty = computed(() => Object.keys(changes.value).length > 0)

  const invalid = computed(() => {
    const { name, sku, price, category, image_url, description } = values.value
    const atMost = (text: string | null, most: number) =>
      characterCount(text ?? '') > most ? t('admin.product.atMost', { most }) : ''
    const line = (text: string | null, most: number) =>
      atMost(text, most) || (text && !isVisibleLine(text) ? t('admin.product.oneLine') : '')
    return Object.entries({
      name: name ? line(name, 200) : t('field.required'),
      sku: line(sku, 64),
      price: !price ? t('field.required') : parsePrice(price) === null ? t('admin.product.priceForm') : '',
      category: line(category, 100),
      image_url: image_url && !IMAGE_URL.test(image_url) ? t('admin.product.imageForm') : atMost(image_url, 500),
      description: atMost(description, 10_000) || (isFullyVisible(description ?? '') ? '' : t('admin.product.unseen')),
    }).filter(([, message]) => message)
  })
  const errors = computed<Record<string, string>>(() => ({
    ...(wasSubmitted.value ? Object.fromEntries(invalid.value) : {}),
    ...serverErrors.value,
  }))

  /** Whether the draft is valid. From now on errors are shown. */
  function validate() {
    wasSubmitted.value = true
    serverErrors.value = {}
    return !invalid.value.length
  }

  /** Shows the product. Fields typed in since `sent` keep their text. */
  function reset(product?: Values, sent: Draft = { ...draft }) {
    const shown = draftOf(product)
    for (const field of FIELDS) if (draft[field] === sent[field]) draft[field] = shown[field]
    serverErrors.value = {}
    wasSubmitted.value = false
  }

  return { draft, values, changes, isDirty, errors, serverErrors, validate, reset, draftOf }
}

const EMPTY_VALUES: Values = { name: '', sku: null, price: '', category: null, image_url: null, description: null }
