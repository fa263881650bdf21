import { queryOptions, useQuery, useQueryClient } from '@tanstack/vue-query'
import { computed, toValue, type MaybeRefOrGetter } from 'vue'
import type { Product, ProductPage } from '@/api/client'
import { Problem } from '@/api/problem'
import { getProduct } from '@/api/products'
import { useLiveProducts } from './useLiveProducts'

export const productQuery = (id: number) => queryOptions({ queryKey: ['product', id], queryFn: () => getProduct(id) })

/** It is sold no more, whether it was taken off the shelves just now or never was there. */
export const isGone = (product: Product | undefined, error: unknown) =>
  product?.is_active === false || (error instanceof Problem && error.status === 404)

/** One product, kept as it is now; until it is read, as a list had it. */
export function useProduct(id: MaybeRefOrGetter<number>) {
  const queries = useQueryClient()
  const listed = () =>
    queries
      .getQueriesData<ProductPage>({ queryKey: ['products'] })
      .flatMap(([, page]) => page?.items ?? [])
      .find((product) => product.id === toValue(id))
  // Of what was sold while nobody watched it the feed doesn't tell.
  const query = useQuery(computed(() => ({ ...productQuery(toValue(id)), placeholderData: listed, staleTime: 0 })))
  useLiveProducts(() => [toValue(id)])
  return { ...query, gone: computed(() => isGone(query.data.value, query.error.value)) }
}

/** For a product that is likely to be opened next: its page and what stands there. */
export function usePrefetchProduct() {
  const queries = useQueryClient()
  return (product: Product) => {
    // What can't be loaded now is loaded, or told, when it is opened.
    import('@/pages/ProductPage.vue').catch(() => {})
    void queries.prefetchQuery(productQuery(product.id))
  }
}
