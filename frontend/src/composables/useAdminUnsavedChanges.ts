import { useEventListener } from '@vueuse/core'
import { onScopeDispose, ref, toValue, watch, type MaybeRefOrGetter } from 'vue'
import { useRouter } from 'vue-router'

/** Asks before unsaved changes are lost. `isAsking` opens the dialog; `leave` confirms, closing it cancels. */
export function useAdminUnsavedChanges(isDirty: MaybeRefOrGetter<boolean>) {
  const router = useRouter()
  const isAsking = ref(false)
  let answer: (leaves: boolean) => void = () => {}

  const removeGuard = router.beforeEach((to, from) => {
    if (!toValue(isDirty) || to.path === from.path) return
    isAsking.value = true
    return new Promise<boolean>((resolve) => (answer = resolve))
  })
  onScopeDispose(removeGuard)
  useEventListener(window, 'beforeunload', (event) => {
    if (toValue(isDirty)) event.preventDefault()
  })

  watch(isAsking, (open) => open || answer(false))
  function leave() {
    answer(true)
    isAsking.value = false
  }

  return { isAsking, leave }
}
