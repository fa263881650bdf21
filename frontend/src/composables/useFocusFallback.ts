import { nextTick, useTemplateRef, watch, type WatchSource } from 'vue'

/**
 * The page's heading, as the template ref `heading`, takes the focus when what changes takes it from a control, gone or
 * disabled then: the keyboard would begin at the top of the page again.
 */
export function useFocusFallback(changes: WatchSource[]) {
  const heading = useTemplateRef<{ $el: HTMLElement }>('heading')

  watch(changes, async () => {
    if (document.activeElement === document.body) return
    await nextTick()
    // A dialog gives the focus back a moment after it has closed.
    await new Promise((resolve) => setTimeout(resolve))
    if (document.activeElement?.matches('body, :disabled')) heading.value?.$el.focus({ preventScroll: true })
  })
}
