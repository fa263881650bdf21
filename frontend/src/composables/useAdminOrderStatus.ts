import { useMutation, useQueryClient } from '@tanstack/vue-query'
import { useI18n } from 'vue-i18n'
import type { Order, OrderStatus } from '@/api/client'
import { setOrderStatus } from '@/api/orders'
import { useSession } from '@/stores/session'
import { useToasts } from '@/stores/toasts'

const NEXT_STATUSES: Record<OrderStatus, OrderStatus[]> = {
  pending: ['confirmed', 'cancelled'],
  confirmed: ['shipped', 'cancelled'],
  shipped: ['delivered'],
  delivered: [],
  cancelled: [],
}
export const nextStatuses = (status: OrderStatus) => NEXT_STATUSES[status]

/** Changes an order's status, then refetches the order and all that depends on it. */
export function useAdminOrderStatus(id: number) {
  const { t } = useI18n()
  const session = useSession()
  const queries = useQueryClient()
  const toasts = useToasts()
  const mutationKey = ['order-step', id]

  const { mutate, error, isPending, variables, reset } = useMutation({
    mutationKey,
    mutationFn: (status: OrderStatus) => setOrderStatus(id, status),
    onMutate: () => session.visit,
    onSuccess: (order, _, visit) => {
      // Another user may have logged in meanwhile.
      if (visit !== session.visit) return
      queries.setQueryData<Order>(['order', id], order)
      toasts.show({ kind: 'success', title: t('admin.order.done', { id, status: t(`status.${order.status}`) }) })
    },
    onSettled: () =>
      Promise.all(
        ['order', 'orders', 'notifications', 'summary'].map((name) => queries.invalidateQueries({ queryKey: [name] })),
      ),
  })

  /** Ignores a second click that comes before the button is rendered as busy. */
  function setStatus(status: OrderStatus) {
    if (!queries.isMutating({ mutationKey })) mutate(status)
  }

  return { setStatus, error, isPending, variables, reset }
}
