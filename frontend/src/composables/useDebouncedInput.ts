import { useTimeoutFn } from '@vueuse/core'
import { onScopeDispose, type Ref, watch } from 'vue'
import { useRoute, useRouter } from 'vue-router'

const PAUSE_MS = 250

/** Calls `send` after a pause in typing. Following a link before that cancels it. */
export function useDebouncedInput(text: Ref<string>, send: () => void) {
  const { path } = useRoute()
  const { start, stop } = useTimeoutFn(send, PAUSE_MS, { immediate: false })
  watch(text, () => start())
  onScopeDispose(useRouter().beforeEach((to) => (to.path === path ? undefined : stop())))
}
