import { onScopeDispose, shallowRef, toValue, watch, type MaybeRefOrGetter } from 'vue'
import { useI18n } from 'vue-i18n'
import { useRoute } from 'vue-router'

type Title = MaybeRefOrGetter<string | undefined>

/** The title set by the current page. */
const pageTitle = shallowRef<Title>()

/** Replaces the route's title while the page is mounted and its title is not empty. */
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
