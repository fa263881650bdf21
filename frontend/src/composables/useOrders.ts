import { keepPreviousData, useQuery } from '@tanstack/vue-query'
import { toValue, type MaybeRefOrGetter } from 'vue'
import { listOrders, type OrderQuery } from '@/api/orders'

export function useOrders(query: MaybeRefOrGetter<OrderQuery>) {
  return useQuery({
    queryKey: ['orders', query],
    queryFn: ({ signal }) => listOrders(toValue(query), signal),
    placeholderData: keepPreviousData,
  })
}
