import userEvent from '@testing-library/user-event'
import { fireEvent, screen, within } from '@testing-library/vue'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, product, stubNetwork } from '@/testing/api'
import ShopPage from './ShopPage.vue'

const PRODUCTS = [product({ id: 1, name: 'Morels' }), product({ id: 2, name: 'Mortar' })]
let total: number
let requests: Request[]

beforeEach(() => {
  Element.prototype.scrollIntoView = () => {}
  total = 60
  requests = stubNetwork((_, path) =>
    path.endsWith('/categories')
      ? jsonResponse([
          { category: 'Fresh', count: 7 },
          { category: 'Tools', count: 3 },
        ])
      : jsonResponse({ items: total ? PRODUCTS : [], total, limit: 24, offset: 0 }),
  )
})

afterEach(() => void vi.useRealTimers())

/** The query of the last catalogue request. */
const lastQuery = () => {
  const asked = requests.map(({ url }) => new URL(url)).filter(({ pathname }) => pathname === '/api/products')
  return Object.fromEntries(asked.at(-1)!.searchParams)
}

test('the first page shows the hero and the newest products', async () => {
  await renderInApp(ShopPage)

  expect(await screen.findByRole('link', { name: 'Morels' })).toBeVisible()
  expect(screen.getByRole('heading', { level: 1 })).toHaveTextContent('grow at your feet')
  expect(screen.getByText('60 products')).toBeVisible()
  expect(lastQuery()).toEqual({ limit: '24', offset: '0', sort_by: '-created_at' })
})

test('the address holds search, category, sort and page', async () => {
  await renderInApp(ShopPage, { at: '/?q=mor&category=Fresh&sort=price&page=2' })

  await screen.findByRole('link', { name: 'Morels' })
  expect(lastQuery()).toEqual({ limit: '24', offset: '24', sort_by: 'price', name: 'mor', category: 'Fresh' })
  expect(screen.getByRole('searchbox')).toHaveValue('mor')
  expect(screen.getByRole('combobox')).toHaveValue('price')
  expect(screen.getByRole('heading', { level: 1 })).toHaveTextContent('Results for “mor” in Fresh')
  expect(screen.getByRole('link', { name: /^Fresh/ })).toHaveAttribute('aria-current', 'true')
})

test('an unknown sort or page in the address shows the first page of the newest', async () => {
  await renderInApp(ShopPage, { at: '/?sort=constructor&page=-3' })

  await screen.findByRole('link', { name: 'Morels' })
  expect(lastQuery()).toMatchObject({ offset: '0', sort_by: '-created_at' })
})

test('typing searches from the first page and keeps the focus and the other filters', async () => {
  const { router } = await renderInApp(ShopPage, { at: '/?category=Fresh&page=2' })
  await screen.findByRole('link', { name: 'Morels' })

  await userEvent.type(screen.getByRole('searchbox'), 'morel')

  await expect.poll(() => router.currentRoute.value.fullPath).toBe('/?category=Fresh&q=morel')
  await expect.poll(lastQuery).toMatchObject({ name: 'morel', category: 'Fresh', offset: '0' })
  expect(screen.getByRole('searchbox')).toHaveFocus()
})

test('a search is sent after a pause, not for each letter', async () => {
  await renderInApp(ShopPage)
  await screen.findByRole('link', { name: 'Morels' })

  await userEvent.type(screen.getByRole('searchbox'), 'morel')

  await expect.poll(lastQuery).toMatchObject({ name: 'morel' })
  expect(requests.filter(({ url }) => url.includes('name='))).toHaveLength(1)
})

test('clicking a product before the pause opens it and cancels the search', async () => {
  const { router } = await renderInApp(ShopPage)
  await screen.findByRole('link', { name: 'Morels' })
  let arrive = () => {}
  // The product's page is still loading when the pause ends.
  router.beforeResolve((to) => to.name !== 'product' || new Promise<void>((resolve) => (arrive = resolve)))
  vi.useFakeTimers()

  await fireEvent.update(screen.getByRole('searchbox'), 'mor')
  await fireEvent.click(screen.getByRole('link', { name: 'Morels' }))
  await vi.advanceTimersByTimeAsync(1000)
  arrive()
  await vi.advanceTimersByTimeAsync(1000)

  expect(router.currentRoute.value.fullPath).toBe('/products/1')
})

test('going back restores the former search in the field', async () => {
  const { router } = await renderInApp(ShopPage, { at: '/?q=mor' })
  await router.push('/?q=chaga')
  await expect.poll(() => screen.getByRole<HTMLInputElement>('searchbox').value).toBe('chaga')

  router.back()

  await expect.poll(() => screen.getByRole<HTMLInputElement>('searchbox').value).toBe('mor')
})

test('choosing a category keeps the search and starts at the first page', async () => {
  await renderInApp(ShopPage, { at: '/?q=mor&page=2' })

  expect(await screen.findByRole('link', { name: /^Tools/ })).toHaveAttribute('href', '/?q=mor&category=Tools')
  expect(screen.getByRole('link', { name: /^All/ })).toHaveAttribute('href', '/?q=mor')
})

test('another sort starts at the first page', async () => {
  const { router } = await renderInApp(ShopPage, { at: '/?page=2' })

  await userEvent.selectOptions(screen.getByRole('combobox'), 'Price, low to high')

  await expect.poll(() => router.currentRoute.value.fullPath).toBe('/?sort=price')
})

test('the pages are links that keep the filters', async () => {
  await renderInApp(ShopPage, { at: '/?q=mor' })

  const pages = await screen.findByRole('navigation', { name: 'Pages' })

  expect(within(pages).getByRole('link', { name: 'Page 3' })).toHaveAttribute('href', '/?q=mor&page=3')
})

test('a page beyond the last leads to the last', async () => {
  const { router } = await renderInApp(ShopPage, { at: '/?q=mor&page=9' })

  await expect.poll(() => router.currentRoute.value.fullPath).toBe('/?q=mor&page=3')
})

test('without results the filters can be cleared', async () => {
  total = 0
  const { router } = await renderInApp(ShopPage, { at: '/?q=zzz' })

  await userEvent.click(await screen.findByRole('link', { name: 'Clear the filters' }))

  await expect.poll(() => router.currentRoute.value.fullPath).toBe('/')
  await expect.poll(() => screen.getByRole<HTMLInputElement>('searchbox').value).toBe('')
})

test('a failed load of the catalogue can be retried', async () => {
  let isDown = true
  stubNetwork((_, path) => {
    if (path.endsWith('/categories')) return jsonResponse([])
    return isDown
      ? problemResponse('malformed-request', 400)
      : jsonResponse({ items: PRODUCTS, total: 2, limit: 24, offset: 0 })
  })
  await renderInApp(ShopPage)
  const retry = await screen.findByRole('button', { name: 'Try again' })

  isDown = false
  await userEvent.click(retry)

  expect(await screen.findByRole('link', { name: 'Morels' })).toBeVisible()
})
