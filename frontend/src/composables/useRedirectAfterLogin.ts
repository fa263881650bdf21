import { computed, watch } from 'vue'
import { useRoute, useRouter } from 'vue-router'
import { useSession } from '@/stores/session'
import { safeRedirectPath } from '@/utils/redirectPath'

/** For login pages: redirects to `next`, the page that was requested, as soon as a user is logged in. */
export function useRedirectAfterLogin() {
  const route = useRoute()
  const router = useRouter()
  const session = useSession()
  const next = computed<string>((before) => before ?? safeRedirectPath(route.query.next))
  /** For links to the other login pages. */
  const query = computed(() => (next.value === '/' ? {} : { next: next.value }))

  watch(
    () => session.user,
    (user) => user && router.replace(next.value),
    { immediate: true },
  )

  return { next, query }
}
