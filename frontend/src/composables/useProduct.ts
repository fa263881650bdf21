import { queryOptions, useQuery, useQueryClient } from '@tanstack/vue-query'
import { computed, toValue, type MaybeRefOrGetter } from 'vue'
import type { Product, ProductPage } from '@/api/client'
import { Problem } from '@/api/problem'
import { getProduct } from '@/api/products'
import { useLiveProducts } from './useLiveProducts'

export const productQuery = (id: number) => queryOptions({ queryKey: ['product', id], queryFn: () => getProduct(id) })

/** Deactivated, or never existed. */
export const isGone = (product: Product | undefined, error: unknown) =>
  product?.is_active === false || (error instanceof Problem && error.status === 404)

/** A product, updated by the feed. Until it is loaded, the data of a cached list is shown. */
export function useProduct(id: MaybeRefOrGetter<number>) {
  const queries = useQueryClient()
  const listed = () =>
    queries
      .getQueriesData<ProductPage>({ queryKey: ['products'] })
      .flatMap(([, page]) => page?.items ?? [])
      .find((product) => product.id === toValue(id))
  // The feed reports no changes of products that were not watched.
  const query = useQuery(computed(() => ({ ...productQuery(toValue(id)), placeholderData: listed, staleTime: 0 })))
  useLiveProducts(() => [toValue(id)])
  return { ...query, gone: computed(() => isGone(query.data.value, query.error.value)) }
}

/** Loads the code and the data of a product's page ahead. */
export function usePrefetchProduct() {
  const queries = useQueryClient()
  return (product: Product) => {
    // A failure shows, if it persists, when the page is opened.
    import('@/pages/ProductPage.vue').catch(() => {})
    void queries.prefetchQuery(productQuery(product.id))
  }
}
