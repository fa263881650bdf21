import { useMutation, useQuery, useQueryClient } from '@tanstack/vue-query'
import { computed, ref, watch, watchEffect } from 'vue'
import type { Order } from '@/api/client'
import { listNotifications } from '@/api/notifications'
import { getOrder, setOrderStatus } from '@/api/orders'
import { Problem } from '@/api/problem'
import { useSession } from '@/stores/session'

const LONGEST_PAUSE_MS = 30_000
/** Six minutes in all. Then only what comes in, or coming back to the page, reads them anew. */
const MOST_LOOKS = 15

/** An order and the mails about it. */
export function useOrder(id: number) {
  const session = useSession()

  const order = useQuery({ queryKey: ['order', id], queryFn: () => getOrder(id) })

  const pause = ref<number | false>(false)
  const looks = ref(0)
  const mailsQuery = { order_id: id, page_size: 100 }
  const notifications = useQuery({
    queryKey: ['notifications', mailsQuery],
    queryFn: () => {
      looks.value++
      return listNotifications(mailsQuery)
    },
    refetchInterval: pause,
  })
  const mails = computed(() => notifications.data.value?.notifications ?? [])
  const steps = computed(() => order.data.value?.history.length ?? 0)

  // A step's mail is stored after the step and sent after that, and nobody tells us when it has gone.
  watch([mails, steps], () => (looks.value = 0))
  watchEffect(() => {
    const isOurs = order.data.value?.user_id === session.user?.id
    const isAwaited =
      isOurs && (mails.value.length < steps.value || mails.value.some(({ status }) => status === 'pending'))
    pause.value = isAwaited && looks.value < MOST_LOOKS ? Math.min(LONGEST_PAUSE_MS, 500 * 2 ** looks.value) : false
  })

  const isMissing = computed(() => order.error.value instanceof Problem && order.error.value.status === 404)
  return { order, isMissing, notifications, mails }
}

export function useCancelOrder(id: number) {
  const session = useSession()
  const queries = useQueryClient()
  const { mutateAsync } = useMutation({
    mutationFn: () => setOrderStatus(id, 'cancelled'),
    onMutate: () => session.visit,
    onSuccess: (cancelled, _, visit) => {
      // It may be somebody else who is here by now.
      if (visit === session.visit) queries.setQueryData<Order>(['order', id], cancelled)
    },
    // Its stock is back on the shelves, too. And a refusal says that what is on the screen is old.
    onSettled: (_, failure) => {
      if (failure instanceof Problem && failure.passes) return
      for (const name of ['order', 'orders', 'notifications', 'product', 'products'])
        void queries.invalidateQueries({ queryKey: [name] })
    },
  })
  return () => mutateAsync()
}
