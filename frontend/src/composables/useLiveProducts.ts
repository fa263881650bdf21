import { type Query, useQueryClient } from '@tanstack/vue-query'
import { onScopeDispose, toValue, watch, type MaybeRefOrGetter } from 'vue'
import type { Product, ProductPage } from '@/api/client'
import { type ProductNews, useLive } from '@/stores/live'

const isOfProducts = ({ queryKey }: Query) => queryKey[0] === 'product' || queryKey[0] === 'products'

/** While the caller is on the screen, keeps what is read of these products as the feed says. */
export function useLiveProducts(ids: MaybeRefOrGetter<number[]>) {
  const live = useLive()
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

  live.onProduct(async (news) => {
    const reading = queries.getQueryCache().findAll({ fetchStatus: 'fetching', predicate: isOfProducts })
    take(news)
    // What was asked before the news may be older, and comes after it.
    if (reading.length) await Promise.allSettled(reading.map(({ promise }) => promise)).then(() => take(news))
  })
  live.onGap(() => void queries.invalidateQueries({ predicate: isOfProducts }, { cancelRefetch: false }))

  /** Their age stays: all else of them is as old as it was. */
  function take(news: ProductNews) {
    for (const { queryKey, state } of queries.getQueryCache().findAll({ predicate: isOfProducts })) {
      queries.setQueryData<Product | ProductPage>(queryKey, (known) => known && withNews(known, news), {
        updatedAt: state.dataUpdatedAt,
      })
    }
  }
}

function withNews<Known extends Product | ProductPage>(known: Known, news: ProductNews): Known {
  if ('items' in known) return { ...known, items: known.items.map((item) => withNews(item, news)) }
  if (known.id !== news.id) return known
  const { price, stock_quantity, is_active } = news
  return { ...known, price, stock_quantity, is_active }
}
