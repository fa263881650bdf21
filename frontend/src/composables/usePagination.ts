import { computed, toValue, watch, type MaybeRefOrGetter } from 'vue'
import { type LocationQuery, useRoute, useRouter } from 'vue-router'

const MAX_PAGES = 10 ** 7

/** The address' query, and the page that it names. */
export function usePagination(pageSize: number) {
  const route = useRoute()
  const router = useRouter()
  const path = route.path

  // On the way out the address is already another page's.
  const query = computed<LocationQuery>((before) => (route.path === path || !before ? route.query : before))
  const page = computed(() => {
    const named = Number(query.value.page)
    return Number.isInteger(named) && named >= 1 && named <= MAX_PAGES ? named : 1
  })

  /** One that lies beyond the end, since the list became shorter, gives way to the last. */
  function clampPage(total: MaybeRefOrGetter<number | undefined>) {
    watch([() => toValue(total), page], ([count]) => {
      const last = Math.max(1, Math.ceil((count ?? Infinity) / pageSize))
      if (route.path === path && page.value > last)
        void router.replace({ query: { ...query.value, page: last > 1 ? String(last) : undefined } })
    })
  }

  return { query, page, clampPage }
}
