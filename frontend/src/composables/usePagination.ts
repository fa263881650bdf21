import { computed, toValue, watch, type MaybeRefOrGetter } from 'vue'
import { type LocationQuery, useRoute, useRouter } from 'vue-router'

const MAX_PAGES = 10 ** 7

/** The address's query and the page number in it. */
export function usePagination(pageSize: number) {
  const route = useRoute()
  const router = useRouter()
  const path = route.path

  // While the page is left, the address already belongs to the next one.
  const query = computed<LocationQuery>((before) => (route.path === path || !before ? route.query : before))
  const page = computed(() => {
    const named = Number(query.value.page)
    return Number.isInteger(named) && named >= 1 && named <= MAX_PAGES ? named : 1
  })

  /** Redirects to the last page if the list has become shorter. */
  function clampPage(total: MaybeRefOrGetter<number | undefined>) {
    watch([() => toValue(total), page], ([count]) => {
      const last = Math.max(1, Math.ceil((count ?? Infinity) / pageSize))
      if (route.path === path && page.value > last)
        void router.replace({ query: { ...query.value, page: last > 1 ? String(last) : undefined } })
    })
  }

  return { query, page, clampPage }
}
