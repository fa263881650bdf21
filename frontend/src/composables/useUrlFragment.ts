import { watch } from 'vue'
import { useRoute, useRouter } from 'vue-router'

/**
 * What a link brought in the address's fragment, which servers never see: taken out of the address bar and the history
 * at once, and given to `take`, also when a second link is followed on the same page. A place on the page (`#main`) is none.
 */
export function useUrlFragment(take: (fragment: URLSearchParams) => void) {
  const route = useRoute()
  const router = useRouter()
  const { path } = route

  watch(
    () => route.hash,
    (hash) => {
      if (!hash.includes('=') || route.path !== path) return
      void router.replace({ query: route.query, hash: '' })
      take(new URLSearchParams(hash.slice(1)))
    },
    { immediate: true },
  )
}
