import { QueryClient, VueQueryPlugin } from '@tanstack/vue-query'
import { render } from '@testing-library/vue'
import { createPinia } from 'pinia'
import type { Component } from 'vue'
import { createMemoryHistory, createRouter } from 'vue-router'
import { i18n } from '@/i18n'
import { router as appRouter } from '@/router'

/** Renders a component with the app's plugins, at an address of the app. All pages are empty. */
export async function renderInApp(
  component: Component,
  { props = {}, at = '/' }: { props?: object; at?: string } = {},
) {
  const anywhere = { template: '<div />' }
  const router = createRouter({
    history: createMemoryHistory(),
    routes: appRouter.getRoutes().map(({ path, name }) => ({ path, name: name ?? path, component: anywhere })),
  })
  await router.push(at)
  const pinia = createPinia()
  const queryClient = new QueryClient({ defaultOptions: { queries: { retry: false } } })
  const plugins = [pinia, router, i18n, [VueQueryPlugin, { queryClient }] as [typeof VueQueryPlugin, object]]
  return { ...render(component, { props, global: { plugins } }), router, pinia, queryClient }
}
