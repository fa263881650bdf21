import { onScopeDispose, shallowRef, toValue, watch, type MaybeRefOrGetter } from 'vue'
import { useI18n } from 'vue-i18n'
import { useRoute } from 'vue-router'

type Title = MaybeRefOrGetter<string | undefined>

/** What the page that is shown calls itself. */
const pageTitle = shallowRef<Title>()

/** What the browser's tab says instead of the route's title, as long as the page is there and has one. */
export function usePageTitle(title: Title) {
  pageTitle.value = title
  onScopeDispose(() => {
    if (pageTitle.value === title) pageTitle.value = undefined
  })
}

export function syncPageTitle() {
  const { t } = useI18n()
  const route = useRoute()
  watch(
    () => toValue(pageTitle.value) || t(route.meta.title ?? 'nav.shop'),
    (text) => (document.title = `${text} · Forage`),
    { immediate: true },
  )
}
