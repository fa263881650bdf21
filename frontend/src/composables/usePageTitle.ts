import { onScopeDispose, shallowRef, toValue, watch, type MaybeRefOrGetter } from 'vue'
import { useI18n } from 'vue-i18n'
import { useRoute } from 'vue-router'

type Title = MaybeRefOrGetter<string | undefined>

/** What the page that is shown calls itself. */
const own = shallowRef<Title>()

/** What the browser's tab says instead of the route's title, as long as the page is there and has one. */
export function usePageTitle(title: Title) {
  own.value = title
  onScopeDispose(() => {
    if (own.value === title) own.value = undefined
  })
}

export function keepPageTitle() {
  const { t } = useI18n()
  const route = useRoute()
  watch(
    () => toValue(own.value) || t(route.meta.title ?? 'nav.shop'),
    (text) => (document.title = `${text} · Forage`),
    { immediate: true },
  )
}
