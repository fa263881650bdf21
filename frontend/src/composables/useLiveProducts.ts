import { type Query, useQueryClient } from '@tanstack/vue-query'
import { onScopeDispose, toValue, watch, type MaybeRefOrGetter } from 'vue'
import type { Product, ProductPage } from '@/api/client'
import { type ProductUpdate, useLiveFeed } from '@/stores/liveFeed'

const isOfProducts = ({ queryKey }: Query) => queryKey[0] === 'product' || queryKey[0] === 'products'

/** While the caller is on the screen, keeps what is read of these products as the feed says. */
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
    // What was asked before the news may be older, and comes after it.
    if (inFlight.length)
      await Promise.allSettled(inFlight.map(({ promise }) => promise)).then(() => applyUpdate(update))
  })
  live.onConnected(() => void queries.invalidateQueries({ predicate: isOfProducts }, { cancelRefetch: false }))

  /** Their age stays: all else of them is as old as it was. */
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
