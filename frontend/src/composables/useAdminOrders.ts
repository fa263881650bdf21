import { keepPreviousData, useQuery } from '@tanstack/vue-query'
import { computed, shallowRef, toValue, watch, type MaybeRefOrGetter } from 'vue'
import type { Order } from '@/api/client'
import { listOrders, type OrderQuery } from '@/api/orders'

const REFRESH_MS = 5_000

type Pin = { query: string; orders: Order[] }

/**
 * A page of all customers' orders, refreshed without moving rows while an admin works with them: new orders wait,
 * counted by `newCount`, until `showNew`.
 */
export function useAdminOrders(query: MaybeRefOrGetter<OrderQuery & { limit: number; skip: number }>) {
  const { data, error, isPlaceholderData, refetch } = useQuery({
    queryKey: computed(() => ['orders', { all: true, ...toValue(query) }]),
    queryFn: ({ signal }) => listOrders({ all: true, ...toValue(query) }, signal),
    placeholderData: keepPreviousData,
    staleTime: 0,
    refetchInterval: REFRESH_MS,
  })
  const pin = shallowRef<Pin>()

  watch(
    data,
    (latest) => {
      if (!latest || isPlaceholderData.value) return
      const queryJson = JSON.stringify(toValue(query))
      const isSame = pin.value?.query === queryJson && pin.value.orders.length
      pin.value = { query: queryJson, orders: isSame ? merge(pin.value!.orders, latest.orders) : latest.orders }
    },
    { immediate: true },
  )

  /**
   * The shown orders in their current state. One that newer orders pushed to the next page stays. One that no longer
   * matches the filter is removed, and an older one moves up.
   */
  function merge(shownOrders: Order[], latest: Order[]) {
    const now = new Map(latest.map((order) => [order.id, order]))
    const oldest = latest.length === toValue(query).limit ? latest.at(-1)!.id : 0
    const stayed = shownOrders.flatMap((order) => now.get(order.id) ?? (order.id < oldest ? order : []))
    const movedUp = latest.filter((order) => order.id < shownOrders.at(-1)!.id)
    const shown = [...stayed, ...movedUp]
    // Without any shown order, the waiting ones could not be counted.
    return shown.length ? shown : latest
  }

  const newCount = computed(() => {
    const newest = pin.value?.orders[0]?.id
    if (!data.value || !newest || toValue(query).skip || isPlaceholderData.value) return 0
    return data.value.orders.filter((order) => order.id > newest).length
  })

  function showNew() {
    if (data.value) pin.value = { query: JSON.stringify(toValue(query)), orders: data.value.orders }
  }

  return {
    orders: computed(() => data.value && pin.value?.orders),
    total: computed(() => data.value?.total),
    newCount,
    showNew,
    error,
    isPlaceholderData,
    refetch,
  }
}
