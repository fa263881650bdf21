import { type Query, useQueryClient } from '@tanstack/vue-query'
import { onScopeDispose, toValue, watch, type MaybeRefOrGetter } from 'vue'
import type { Product, ProductPage } from '@/api/client'
import { type ProductUpdate, useLiveFeed } from '@/stores/liveFeed'

const isOfProducts = ({ queryKey }: Query) => queryKey[0] === 'product' || queryKey[0] === 'products'

/** Keeps these products current in the query cache while the calling component is mounted. */
export function useLiveProducts(ids: MaybeRefOrGetter<number[]>) {
  const live = useLiveFeed()
  const queries = useQueryClient()
  let watched: number[] = []

  watch(
    () => toValue(ids),
    (next) => {
      live.watchProducts(next)
      live.unwatchProducts(watched)
      watched = next
    },
    { immediate: true },
  )
  onScopeDispose(() => live.unwatchProducts(watched))

  live.onProduct(async (update) => {
    const inFlight = queries.getQueryCache().findAll({ fetchStatus: 'fetching', predicate: isOfProducts })
    applyUpdate(update)
    // A response requested before the update may be older and arrive after it.
    if (inFlight.length)
      await Promise.allSettled(inFlight.map(({ promise }) => promise)).then(() => applyUpdate(update))
  })
  live.onConnected(() => void queries.invalidateQueries({ predicate: isOfProducts }, { cancelRefetch: false }))

  /** Keeps `updatedAt`: the other fields are as old as before. */
  function applyUpdate(update: ProductUpdate) {
    for (const { queryKey, state } of queries.getQueryCache().findAll({ predicate: isOfProducts })) {
      queries.setQueryData<Product | ProductPage>(queryKey, (known) => known && withUpdate(known, update), {
        updatedAt: state.dataUpdatedAt,
      })
    }
  }
}

function withUpdate<Known extends Product | ProductPage>(known: Known, update: ProductUpdate): Known {
  if ('items' in known) return { ...known, items: known.items.map((item) => withUpdate(item, update)) }
  if (known.id !== update.id) return known
  const { price, stock_quantity, is_active } = update
  return { ...known, price, stock_quantity, is_active }
}
