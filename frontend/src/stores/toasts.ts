import { defineStore } from 'pinia'
import { ref, watch } from 'vue'
import type { RouteLocationRaw } from 'vue-router'
import { useSession } from './session'

export type Toast = {
  id: number
  kind: 'info' | 'success' | 'error'
  title: string
  text?: string
  /** Set if the text is not in the chosen language. */
  textLang?: string
  /** run: called when the link is followed. */
  link?: { to: RouteLocationRaw; label: string; run?: () => void }
  action?: { label: string; run: () => void }
}

/** More would hide the page on a phone. */
const MAX_AT_ONCE = 3

/** Short messages at the screen's edge, announced to screen readers. components/AppToasts.vue shows them. */
export const useToasts = defineStore('toasts', () => {
  const session = useSession()
  const toasts = ref<Toast[]>([])
  let lastId = 0

  /** Returns the id for `dismiss`. */
  function show(toast: Omit<Toast, 'id'>): number {
    toasts.value = [...toasts.value, { ...toast, id: ++lastId }].slice(-MAX_AT_ONCE)
    return lastId
  }

  function dismiss(id: number) {
    toasts.value = toasts.value.filter((toast) => toast.id !== id)
  }

  // A toast and its action belong to one user.
  watch(
    () => session.visit,
    () => (toasts.value = []),
    { flush: 'sync' },
  )

  return { toasts, show, dismiss }
})
