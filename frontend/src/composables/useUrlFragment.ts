import { watch } from 'vue'
import { useRoute, useRouter } from 'vue-router'

/**
 * Passes the data in the URL's fragment, which servers never see, to `take` and removes it from address bar and
 * history. Also for a second link followed on the same page. An anchor such as `#main` is left alone.
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
