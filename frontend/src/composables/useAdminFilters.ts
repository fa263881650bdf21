import { computed } from 'vue'
import { useRouter } from 'vue-router'
import { usePagination } from './usePagination'

/** A list's filters and page, kept in the address. A changed filter starts at the first page. */
export function useAdminFilters<Name extends string>(names: readonly Name[], pageSize: number) {
  const router = useRouter()
  const { query, page, clampPage } = usePagination(pageSize)

  const filters = computed(
    () => Object.fromEntries(names.map((name) => [name, String(query.value[name] ?? '')])) as Record<Name, string>,
  )
  const isFiltered = computed(() => names.some((name) => filters.value[name]))

  function withFilters(changes: Partial<Record<Name, string>>) {
    const changed = Object.entries(changes).map(([name, value]) => [name, value || undefined])
    return { query: { ...query.value, ...Object.fromEntries(changed), page: undefined } }
  }

  return {
    filters,
    page,
    clampPage,
    isFiltered,
    pushFilter: (name: Name, value: string) => router.push(withFilters({ [name]: value } as Record<Name, string>)),
    replaceFilter: (name: Name, value: string) =>
      router.replace(withFilters({ [name]: value } as Record<Name, string>)),
    clear: () => router.push({ query: {} }),
  }
}
