import { useMutation, useQuery, useQueryClient } from '@tanstack/vue-query'
import { computed, ref, watch, watchEffect } from 'vue'
import type { Order } from '@/api/client'
import { listNotifications } from '@/api/notifications'
import { getOrder, setOrderStatus } from '@/api/orders'
import { Problem } from '@/api/problem'
import { useSession } from '@/stores/session'

const MAX_POLL_MS = 30_000
/** Six minutes in all. Then only what comes in, or coming back to the page, reads them anew. */
const MAX_POLLS = 15

/** An order and the mails about it. */
export function useOrder(id: number) {
  const session = useSession()

  const order = useQuery({ queryKey: ['order', id], queryFn: () => getOrder(id) })

  const pollMs = ref<number | false>(false)
  const polls = ref(0)
  const mailsQuery = { order_id: id, page_size: 100 }
  const notifications = useQuery({
    queryKey: ['notifications', mailsQuery],
    queryFn: () => {
      polls.value++
      return listNotifications(mailsQuery)
    },
    refetchInterval: pollMs,
  })
  const mails = computed(() => notifications.data.value?.notifications ?? [])
  const steps = computed(() => order.data.value?.history.length ?? 0)

  // A step's mail is stored after the step and sent after that, and nobody tells us when it has gone.
  watch([mails, steps], () => (polls.value = 0))
  watchEffect(() => {
    const isOwn = order.data.value?.user_id === session.user?.id
    const isWaiting =
      isOwn && (mails.value.length < steps.value || mails.value.some(({ status }) => status === 'pending'))
    pollMs.value = isWaiting && polls.value < MAX_POLLS ? Math.min(MAX_POLL_MS, 500 * 2 ** polls.value) : false
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
      if (failure instanceof Problem && failure.isTransient) return
      for (const name of ['order', 'orders', 'notifications', 'product', 'products'])
        void queries.invalidateQueries({ queryKey: [name] })
    },
  })
  return () => mutateAsync()
}
