import { keepPreviousData, useQuery } from '@tanstack/vue-query'
import { computed, toValue, type MaybeRefOrGetter } from 'vue'
import { listCategories, listProducts, type ProductQuery } from '@/api/products'
import { useLiveProducts } from './useLiveProducts'

const CACHE_MINUTES = 30

/** A page of the catalogue, updated by the feed and cached for going back. */
export function useProducts(query: MaybeRefOrGetter<ProductQuery>) {
  const page = useQuery({
    queryKey: ['products', query],
    queryFn: ({ signal }) => listProducts(toValue(query), signal),
    placeholderData: keepPreviousData,
    // The feed reports no changes of products that were not watched.
    staleTime: 0,
    gcTime: CACHE_MINUTES * 60_000,
  })
  useLiveProducts(computed(() => page.data.value?.items.map((product) => product.id) ?? []))
  return page
}

export const useCategories = () =>
  useQuery({ queryKey: ['categories'], queryFn: listCategories, gcTime: CACHE_MINUTES * 60_000 })
