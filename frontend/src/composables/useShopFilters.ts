import { computed } from 'vue'
import { type LocationQuery, useRoute, useRouter } from 'vue-router'
import type { ProductQuery, ProductSort } from '@/api/products'
import { usePagination } from './usePagination'

export const SORTS = ['-created_at', 'price', '-price', 'name'] as const satisfies ProductSort[]
export const PAGE_SIZE = 24
export const MAX_SEARCH_LENGTH = 200

const text = (query: LocationQuery, name: string) => String([query[name] ?? ''].flat()[0] ?? '').trim()

/** The catalogue's filters, kept in the address only. */
export function useShopFilters() {
  const route = useRoute()
  const router = useRouter()
  const path = route.path
  const { query, page, clampPage } = usePagination(PAGE_SIZE)

  const search = computed(() => text(query.value, 'q').slice(0, MAX_SEARCH_LENGTH))
  const category = computed(() => text(query.value, 'category'))
  const sort = computed(() => SORTS.find((name) => name === text(query.value, 'sort')) ?? SORTS[0])

  const productQuery = computed<ProductQuery>(() => ({
    limit: PAGE_SIZE,
    offset: (page.value - 1) * PAGE_SIZE,
    sort_by: sort.value,
    ...(search.value && { name: search.value }),
    ...(category.value && { category: category.value }),
  }))

  /** A route with changed filters, at the first page. */
  const withFilters = (changes: { q?: string; category?: string; sort?: string }) => ({
    path,
    query: { ...query.value, page: undefined, ...changes },
  })

  async function filter(changes: Parameters<typeof withFilters>[0]) {
    if (route.path === path) await router.replace(withFilters(changes))
  }

  const isFiltered = computed(() => Boolean(search.value || category.value))

  return { search, category, sort, page, clampPage, isFiltered, productQuery, withFilters, filter, shopPath: path }
}
