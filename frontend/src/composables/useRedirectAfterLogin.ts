import { computed, watch } from 'vue'
import { useRoute, useRouter } from 'vue-router'
import { useSession } from '@/stores/session'
import { safeRedirectPath } from '@/utils/redirectPath'

/** On a page that leads in: `next` is where one was on the way to, and where one goes on to as soon as one is in. */
export function useRedirectAfterLogin() {
  const route = useRoute()
  const router = useRouter()
  const session = useSession()
  const next = computed<string>((before) => before ?? safeRedirectPath(route.query.next))
  /** For links to the other ways in. */
  const query = computed(() => (next.value === '/' ? {} : { next: next.value }))

  watch(
    () => session.user,
    (user) => user && router.replace(next.value),
    { immediate: true },
  )

  return { next, query }
}
