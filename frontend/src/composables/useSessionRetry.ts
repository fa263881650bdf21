import { onScopeDispose, watch } from 'vue'
import { backoffMs } from '@/utils/backoff'
import { useSession } from '@/stores/session'

/** While the session can't be restored, tries again after growing pauses, without end. */
export function useSessionRetry() {
  const session = useSession()
  let attempts = 0
  let timer: ReturnType<typeof setTimeout> | undefined

  watch(
    () => session.failure,
    (failure) => {
      clearTimeout(timer)
      attempts = failure ? attempts + 1 : 0
      if (failure)
        timer = setTimeout(session.restore, Math.max(backoffMs(attempts), 1000 * (failure.retryAfterSeconds ?? 0)))
    },
    { immediate: true },
  )
  onScopeDispose(() => clearTimeout(timer))
}
