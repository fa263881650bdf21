import { toValue, watchEffect, type MaybeRefOrGetter } from 'vue'

/** What the browser's tab says. Without a title the one before stays. */
export function usePageTitle(title: MaybeRefOrGetter<string | undefined>) {
  watchEffect(() => {
    const text = toValue(title)
    if (text) document.title = `${text} · Forage`
  })
}
