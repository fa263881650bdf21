import { useMutation, useQuery, useQueryClient } from '@tanstack/vue-query'
import { computed, ref, watch, watchEffect } from 'vue'
import type { Order } from '@/api/client'
import { listNotifications } from '@/api/notifications'
import { getOrder, setOrderStatus } from '@/api/orders'
import { Problem } from '@/api/problem'
import { useSession } from '@/stores/session'

const MAX_POLL_MS = 30_000
/** About six minutes. After that only a push, or a return to the page, refetches them. */
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

  // A step's mail is stored and sent after the step. No push reports that it was sent, so poll.
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
      // Another user may have logged in meanwhile.
      if (visit === session.visit) queries.setQueryData<Order>(['order', id], cancelled)
    },
    // Products too, whose stock was returned. Also after a refusal, which means that the page is out of date.
    onSettled: (_, failure) => {
      if (failure instanceof Problem && failure.isTransient) return
      for (const name of ['order', 'orders', 'notifications', 'product', 'products'])
        void queries.invalidateQueries({ queryKey: [name] })
    },
  })
  return () => mutateAsync()
}
