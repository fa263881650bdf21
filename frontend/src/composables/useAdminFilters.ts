import { computed } from 'vue'
import { useRouter } from 'vue-router'
import { usePaging } from './usePaging'

/** A list's filters and its page, kept in the address. Another filter begins at the first page. */
export function useAdminFilters<Name extends string>(names: readonly Name[], pageSize: number) {
  const router = useRouter()
  const { query, page, stayWithin } = usePaging(pageSize)

  const filters = computed(
    () => Object.fromEntries(names.map((name) => [name, String(query.value[name] ?? '')])) as Record<Name, string>,
  )
  const isFiltered = computed(() => names.some((name) => filters.value[name]))

  function change(changes: Partial<Record<Name, string>>) {
    const given = Object.entries(changes).map(([name, value]) => [name, value || undefined])
    return { query: { ...query.value, ...Object.fromEntries(given), page: undefined } }
  }

  return {
    filters,
    page,
    stayWithin,
    isFiltered,
    pick: (name: Name, value: string) => router.push(change({ [name]: value } as Record<Name, string>)),
    type: (name: Name, value: string) => router.replace(change({ [name]: value } as Record<Name, string>)),
    clear: () => router.push({ query: {} }),
  }
}
