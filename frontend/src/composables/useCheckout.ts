import { useMutation, useQueryClient } from '@tanstack/vue-query'
import { computed, ref, watch } from 'vue'
import { useI18n } from 'vue-i18n'
import { useRoute, useRouter } from 'vue-router'
import { placeOrder } from '@/api/orders'
import { Problem } from '@/api/problem'
import { type CartOrder, useCart } from '@/stores/cart'
import { useToasts } from '@/stores/toasts'

const MAX_TRIES = { inFlight: 15, lost: 3 }

/** Problems which mean that no order was placed. */
const NOTHING_ORDERED = [
  'insufficient-stock',
  'price-changed',
  'product-not-found',
  'too-many-open-orders',
  'invalid-input',
  'key-reused',
]

const pause = (seconds: number) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds))

/**
 * Places the cart's order. Every retry, here or by another click, sends the same key and lines, so that only one order
 * is placed. Later changes of the cart can be ordered once the outcome is known.
 */
export function useCheckout() {
  const { t } = useI18n()
  const cart = useCart()
  const toasts = useToasts()
  const queries = useQueryClient()
  const route = useRoute()
  const router = useRouter()
  const path = route.path
  const isTryingAgain = ref(false)

  async function send({ buyer, key, lines }: CartOrder & { buyer: string }) {
    const items = lines.map(({ product_id, quantity, price }) => ({ product_id, quantity, unit_price: price }))
    for (let tries = 1; ; tries++) {
      try {
        return await placeOrder(items, key)
      } catch (error) {
        if (!(error instanceof Problem)) throw error
        const isInFlight = error.type === 'request-in-flight'
        if (!isInFlight && !error.isTransient) throw error
        if (tries >= (isInFlight ? MAX_TRIES.inFlight : MAX_TRIES.lost)) throw error
        isTryingAgain.value = true
        await pause(error.retryAfterSeconds ?? tries)
        // Another tab has logged another user in: it isn't their order.
        if (cart.owner !== buyer) throw error
      }
    }
  }

  const mutation = useMutation({
    mutationFn: send,
    async onSuccess(order, { buyer, key }) {
      cart.removeOrdered(key, order)
      // Not shown to another user.
      if (cart.owner !== buyer) return
      void queries.invalidateQueries({ queryKey: ['orders'] })
      const to = { path: `/orders/${order.id}`, query: { placed: '1' } }
      if (route.path === path) await router.replace(to)
      else
        toasts.show({
          kind: 'success',
          title: t('shop.checkout.placed', { id: order.id }),
          link: { to, label: t('shop.checkout.view') },
        })
    },
    onError(error, { buyer, key }) {
      if (!(error instanceof Problem)) return
      if (error.type === 'key-reused') cart.renewKey(buyer, key)
      if (NOTHING_ORDERED.includes(error.type)) cart.clearSent(buyer, key)
      const id = error.body.product_id
      if (id) void queries.invalidateQueries({ queryKey: ['product', id] })
    },
    onSettled: () => (isTryingAgain.value = false),
  })

  /** The error, and the cart's name of the product that it is about. */
  const refusal = computed(() => {
    const error = mutation.error.value
    if (!error) return null
    const id = error instanceof Problem ? error.body.product_id : undefined
    return { error, name: mutation.variables.value?.lines.find((line) => line.product_id === id)?.name ?? '' }
  })
  // A changed cart makes the error obsolete.
  watch(
    () => JSON.stringify(cart.lines.map(({ product_id, quantity, price }) => [product_id, quantity, price])),
    () => mutation.isError.value && mutation.reset(),
  )

  function place() {
    if (!mutation.isPending.value) mutation.mutate({ buyer: cart.owner, ...cart.markSent() })
  }

  return { place, refusal, isPlacing: mutation.isPending, isTryingAgain }
}
