import { nextTick, useTemplateRef, watch, type WatchSource } from 'vue'

/**
 * Moves the focus to the page's heading, the template ref `heading`, when a change removes or disables the focused
 * control. Else the keyboard would start at the top of the page again.
 */
export function useFocusFallback(changes: WatchSource[]) {
  const heading = useTemplateRef<{ $el: HTMLElement }>('heading')

  watch(changes, async () => {
    if (document.activeElement === document.body) return
    await nextTick()
    // A dialog returns the focus a moment after it has closed.
    await new Promise((resolve) => setTimeout(resolve))
    if (document.activeElement?.matches('body, :disabled')) heading.value?.$el.focus({ preventScroll: true })
  })
}
