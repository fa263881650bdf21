import { useEventListener } from '@vueuse/core'
import { onScopeDispose, ref, toValue, watch, type MaybeRefOrGetter } from 'vue'
import { useRouter } from 'vue-router'

/** Asks before what was typed gets lost: `asking` opens the question, `leave` and closing it answer. */
export function useAdminUnsaved(isDirty: MaybeRefOrGetter<boolean>) {
  const router = useRouter()
  const asking = ref(false)
  let answer: (leaves: boolean) => void = () => {}

  const off = router.beforeEach((to, from) => {
    if (!toValue(isDirty) || to.path === from.path) return
    asking.value = true
    return new Promise<boolean>((resolve) => (answer = resolve))
  })
  onScopeDispose(off)
  useEventListener(window, 'beforeunload', (event) => {
    if (toValue(isDirty)) event.preventDefault()
  })

  watch(asking, (open) => open || answer(false))
  function leave() {
    answer(true)
    asking.value = false
  }

  return { asking, leave }
}
