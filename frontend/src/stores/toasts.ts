import { defineStore } from 'pinia'
import { ref, watch } from 'vue'
import type { RouteLocationRaw } from 'vue-router'
import { useSession } from './session'

export type Toast = {
  id: number
  kind: 'info' | 'success' | 'error'
  title: string
  text?: string
  /** Of a text that is not in the reader's language. */
  textLang?: string
  /** run: what following it does besides. */
  link?: { to: RouteLocationRaw; label: string; run?: () => void }
  action?: { label: string; run: () => void }
}

/** More would hide the page on a phone. */
const MAX_AT_ONCE = 3

/** Short messages that come up at the edge and are read out. components/AppToasts.vue shows them. */
export const useToasts = defineStore('toasts', () => {
  const session = useSession()
  const toasts = ref<Toast[]>([])
  let lastId = 0

  /** Its id, to dismiss it by. */
  function show(toast: Omit<Toast, 'id'>): number {
    toasts.value = [...toasts.value, { ...toast, id: ++lastId }].slice(-MAX_AT_ONCE)
    return lastId
  }

  function dismiss(id: number) {
    toasts.value = toasts.value.filter((toast) => toast.id !== id)
  }

  // What was said to one, and what it offers to do, is not for the next.
  watch(
    () => session.visit,
    () => (toasts.value = []),
    { flush: 'sync' },
  )

  return { toasts, show, dismiss }
})
