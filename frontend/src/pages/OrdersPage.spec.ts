import { screen } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { expect, test, vi } from 'vitest'
import { renderInApp } from '@/testing/render'
import { jsonResponse, order, problemResponse, stubNetwork } from '@/testing/api'
import OrdersPage from './OrdersPage.vue'

const COUNT = 25

/** A shop with 25 orders, the newest three shipped. */
function shop() {
  const all = Array.from({ length: COUNT }, (_, i) => order({ id: COUNT - i, status: i < 3 ? 'shipped' : 'pending' }))
  return stubNetwork((request) => {
    const query = new URL(request.url).searchParams
    const [skip, limit, status] = [Number(query.get('skip')), Number(query.get('limit')), query.get('status')]
    const found = all.filter((one) => !status || one.status === status)
    return jsonResponse(found.slice(skip, skip + limit), 200, { 'X-Total-Count': String(found.length) })
  })
}

const numbers = () =>
  screen.queryAllByRole('heading', { level: 2 }).map(({ textContent }) => Number(textContent!.match(/\d+/)))

test('the newest orders come first, and pages are links', async () => {
  shop()
  const { router } = await renderInApp(OrdersPage, { at: '/orders' })
  await vi.waitFor(() => expect(numbers()).toEqual([25, 24, 23, 22, 21, 20, 19, 18, 17, 16]))

  await userEvent.click(screen.getByRole('link', { name: 'Page 3' }))

  await vi.waitFor(() => expect(numbers()).toEqual([5, 4, 3, 2, 1]))
  expect(router.currentRoute.value.fullPath).toBe('/orders?page=3')
  expect(screen.getByRole('link', { name: 'Order no. 5' })).toHaveAttribute('href', '/orders/5')
})

test('filtering by status starts at the first page', async () => {
  shop()
  const { router } = await renderInApp(OrdersPage, { at: '/orders?page=3' })

  await userEvent.click(await screen.findByRole('link', { name: 'Shipped' }))

  await vi.waitFor(() => expect(numbers()).toEqual([25, 24, 23]))
  expect(router.currentRoute.value.fullPath).toBe('/orders?status=shipped')
  expect(screen.getByRole('link', { name: 'Shipped' })).toHaveAttribute('aria-current', 'true')
})

test.each(['page=99', 'page=3'])('an address with %s shows the last page', async (query) => {
  shop()
  const { router } = await renderInApp(OrdersPage, { at: `/orders?${query}` })

  await vi.waitFor(() => expect(numbers()).toEqual([5, 4, 3, 2, 1]))
  expect(router.currentRoute.value.fullPath).toBe('/orders?page=3')
})

test.each(['page=0', 'page=-1', 'page=1.5', 'page=many', 'status=eaten'])(
  'an address with %s shows the first page of all orders',
  async (query) => {
    const requests = shop()

    await renderInApp(OrdersPage, { at: `/orders?${query}` })

    await vi.waitFor(() => expect(numbers()).toHaveLength(10))
    expect(new URL(requests[0]!.url).search).toBe('?skip=0&limit=10')
  },
)

test('a user without orders is linked to the shop', async () => {
  stubNetwork(() => jsonResponse([], 200, { 'X-Total-Count': '0' }))

  await renderInApp(OrdersPage, { at: '/orders' })

  expect(await screen.findByText('Your basket has been nowhere yet')).toBeVisible()
  expect(screen.getByRole('link', { name: 'Go to the shop' })).toHaveAttribute('href', '/')
})

test('a status without orders links back to all orders', async () => {
  shop()

  await renderInApp(OrdersPage, { at: '/orders?status=cancelled' })

  expect(await screen.findByText('No order is “Cancelled”')).toBeVisible()
  expect(screen.getByRole('link', { name: 'Show all orders' })).toHaveAttribute('href', '/orders')
})

test('a failed load of the orders can be retried', async () => {
  stubNetwork(() => problemResponse('service-unavailable', 503))
  await renderInApp(OrdersPage, { at: '/orders' })
  const retry = await screen.findByRole('button', { name: 'Try again' })
  shop()

  await userEvent.click(retry)

  await vi.waitFor(() => expect(numbers()).toHaveLength(10))
})
