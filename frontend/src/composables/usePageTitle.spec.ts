import { expect, test } from 'vitest'
import { nextTick, ref } from 'vue'
import { renderInApp } from '@/testing/render'
import { syncPageTitle, usePageTitle } from './usePageTitle'

const name = ref<string>()
const Page = { setup: () => usePageTitle(name), template: '<p />' }
const App = {
  components: { Page },
  props: { isOpen: Boolean },
  setup: syncPageTitle,
  template: '<Page v-if="isOpen" />',
}

test('a page keeps its title when only its query changes', async () => {
  name.value = 'Order 31'
  const { router } = await renderInApp(App, { props: { isOpen: true }, at: '/orders/31?placed=1' })
  expect(document.title).toBe('Order 31 · Forage')

  await router.replace('/orders/31')
  await router.push('/orders/31#main')
  await nextTick()

  expect(document.title).toBe('Order 31 · Forage')
})

test("the route's title shows before a page has its own and after it is left", async () => {
  name.value = undefined
  const { rerender } = await renderInApp(App, { props: { isOpen: true } })
  expect(document.title).toBe('Shop · Forage')

  name.value = 'Chanterelles'
  await nextTick()
  expect(document.title).toBe('Chanterelles · Forage')

  await rerender({ isOpen: false })
  expect(document.title).toBe('Shop · Forage')
})
