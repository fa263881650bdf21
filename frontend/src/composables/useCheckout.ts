import { useMutation, useQueryClient } from '@tanstack/vue-query'
import { computed, ref, watch } from 'vue'
import { useI18n } from 'vue-i18n'
import { useRoute, useRouter } from 'vue-router'
import { type OrderLine, placeOrder } from '@/api/orders'
import { Problem } from '@/api/problem'
import { useCart } from '@/stores/cart'
import { useSession } from '@/stores/session'
import { useToasts } from '@/stores/toasts'

const MOST_TRIES = { inFlight: 15, lost: 3 }

/** With these the shop says that the key has made no order. */
const NOTHING_ORDERED = ['insufficient-stock', 'price-changed', 'product-not-found', 'invalid-input']

const pause = (seconds: number) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds))

/**
 * Places the cart's order. Whatever is tried again, here or by whoever presses again, goes with the cart's key,
 * so that it makes one order.
 */
export function useCheckout() {
  const { t } = useI18n()
  const cart = useCart()
  const session = useSession()
  const toasts = useToasts()
  const queries = useQueryClient()
  const route = useRoute()
  const router = useRouter()
  const path = route.path
  const isTryingAgain = ref(false)
  const items = computed<OrderLine[]>(() =>
    cart.lines.map(({ product_id, quantity, price }) => ({ product_id, quantity, unit_price: price })),
  )

  async function send(order: { items: OrderLine[]; key: string }) {
    const buyer = session.customerId
    for (let tries = 1; ; tries++) {
      try {
        return await placeOrder(order.items, order.key)
      } catch (error) {
        if (!(error instanceof Problem)) throw error
        const isInFlight = error.type === 'request-in-flight'
        if (!isInFlight && !error.passes) throw error
        if (tries >= (isInFlight ? MOST_TRIES.inFlight : MOST_TRIES.lost)) throw error
        isTryingAgain.value = true
        await pause(error.retryAfterSeconds ?? tries)
        // Another tab has logged somebody else in: it isn't their order.
        if (session.customerId !== buyer) throw error
      }
    }
  }

  const mutation = useMutation({
    mutationFn: send,
    async onSuccess(order) {
      cart.takeOut(order)
      void queries.invalidateQueries({ queryKey: ['orders'] })
      const to = { path: `/orders/${order.id}`, query: { placed: '1' } }
      if (route.path === path) await router.replace(to)
      else toasts.show({ kind: 'success', title: t('shop.checkout.placed', { id: order.id }), link: { to, label: t('shop.checkout.view') } })
    },
    onError(error) {
      if (!(error instanceof Problem)) return
      if (error.type === 'key-reused') cart.renewKey()
      if (NOTHING_ORDERED.includes(error.type)) cart.markSent(false)
      const id = error.body.product_id
      if (id) void queries.invalidateQueries({ queryKey: ['product', id] })
    },
    onSettled: () => (isTryingAgain.value = false),
  })

  /** What was refused, and with what name the product is known here. */
  const refusal = computed(() => {
    const error = mutation.error.value
    if (!error) return null
    const id = error instanceof Problem ? error.body.product_id : undefined
    return { error, name: cart.lines.find((line) => line.product_id === id)?.name ?? '' }
  })
  // A cart that was mended answers it.
  watch(
    () => JSON.stringify(items.value),
    () => mutation.isError.value && mutation.reset(),
  )

  function place() {
    if (mutation.isPending.value) return
    cart.markSent(true)
    mutation.mutate({ items: items.value, key: cart.key })
  }

  return { place, refusal, isPlacing: mutation.isPending, isTryingAgain }
}
