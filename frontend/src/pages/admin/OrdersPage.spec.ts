import { screen, waitFor, within } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { beforeAll, beforeEach, expect, test } from 'vitest'
import { loadAdminMessages } from '@/i18n'
import { renderInApp } from '@/testing/render'
import { jsonResponse, order, problemResponse, stubNetwork } from '@/testing/api'
import OrdersPage from './OrdersPage.vue'

beforeAll(loadAdminMessages)

let orders = [order()]
let requests: Request[]
beforeEach(() => {
  orders = [order({ id: 32 }), order({ id: 31 })]
  requests = stubNetwork(() => jsonResponse(orders, 200, { 'X-Total-Count': '10000' }))
})

const asked = () => Object.fromEntries(new URL(requests.at(-1)!.url).searchParams)
const rowNames = () => screen.getAllByRole('rowheader').map((cell) => within(cell).getByRole('link').textContent)

test('the address holds the filters', async () => {
  await renderInApp(OrdersPage, { at: '/admin/orders?status=shipped&q=ada&from=2026-01-02&to=2026-01-03&page=3' })

  await screen.findByRole('link', { name: 'Order 31' })
  expect(asked()).toEqual({
    all: 'true',
    status: 'shipped',
    q: 'ada',
    from: '2026-01-02',
    to: '2026-01-03',
    skip: '50',
    limit: '25',
  })
  expect(screen.getByLabelText('Status')).toHaveValue('shipped')
  expect(screen.getByText('51–75 of 10,000')).toBeVisible()
})

test('another filter starts at the first page', async () => {
  const { router } = await renderInApp(OrdersPage, { at: '/admin/orders?q=ada&page=3' })

  await userEvent.selectOptions(await screen.findByLabelText('Status'), 'pending')

  await waitFor(() => expect(router.currentRoute.value.query).toEqual({ q: 'ada', status: 'pending' }))
  await waitFor(() => expect(asked()).toMatchObject({ status: 'pending', skip: '0' }))
})

test('a search is sent after a pause in typing', async () => {
  const { router } = await renderInApp(OrdersPage, { at: '/admin/orders' })
  await screen.findByRole('link', { name: 'Order 31' })

  await userEvent.type(screen.getByLabelText('Search'), 'bo@')

  await waitFor(() => expect(router.currentRoute.value.query).toEqual({ q: 'bo@' }))
  await waitFor(() => expect(asked()).toMatchObject({ q: 'bo@' }))
  expect(requests).toHaveLength(2)
})

test('new orders wait for a click, while the shown ones stay up to date', async () => {
  const { queryClient } = await renderInApp(OrdersPage, { at: '/admin/orders' })
  await screen.findByRole('link', { name: 'Order 31' })

  orders = [order({ id: 33 }), order({ id: 32, status: 'shipped' }), order({ id: 31 })]
  await queryClient.invalidateQueries()

  const show = await screen.findByRole('button', { name: '1 new order' })
  expect(rowNames()).toEqual(['#32', '#31'])
  expect(within(screen.getByRole('table')).getAllByText('Shipped').length).toBeGreaterThan(0)
  expect(screen.getByText('New orders have come in.')).toBeInTheDocument()
  await userEvent.click(show)
  expect(rowNames()).toEqual(['#33', '#32', '#31'])
  expect(screen.queryByText('New orders have come in.')).not.toBeInTheDocument()
})

test('an order that no longer matches the filter disappears', async () => {
  const { queryClient } = await renderInApp(OrdersPage, { at: '/admin/orders?status=pending' })
  await screen.findByRole('link', { name: 'Order 32' })

  orders = [order({ id: 31 })]
  await queryClient.invalidateQueries()

  await waitFor(() => expect(rowNames()).toEqual(['#31']))
})

test('older orders move up when others disappear', async () => {
  orders = Array.from({ length: 25 }, (_, i) => order({ id: 60 - i }))
  const { queryClient } = await renderInApp(OrdersPage, { at: '/admin/orders?status=pending' })
  await screen.findByRole('link', { name: 'Order 36' })

  // Five orders were confirmed, and a new one was placed.
  orders = [order({ id: 61 }), ...Array.from({ length: 24 }, (_, i) => order({ id: 55 - i }))]
  await queryClient.invalidateQueries()

  await screen.findByRole('link', { name: 'Order 32' })
  expect(rowNames()).toEqual(Array.from({ length: 24 }, (_, i) => `#${55 - i}`))
  expect(screen.getByRole('button', { name: '1 new order' })).toBeVisible()
})

test('when all shown orders disappear, the new ones show', async () => {
  const { queryClient } = await renderInApp(OrdersPage, { at: '/admin/orders?status=pending' })
  await screen.findByRole('link', { name: 'Order 32' })

  orders = [order({ id: 33 })]
  await queryClient.invalidateQueries()

  expect(await screen.findByRole('link', { name: 'Order 33' })).toBeVisible()
})

test('without results all filters can be cleared', async () => {
  orders = []
  const { router } = await renderInApp(OrdersPage, { at: '/admin/orders?q=zzz' })

  await userEvent.click(await screen.findByRole('button', { name: 'Clear all filters' }))

  await waitFor(() => expect(router.currentRoute.value.query).toEqual({}))
})

test('a refused filter shows its error and no list', async () => {
  requests = stubNetwork((request) =>
    request.url.includes('from')
      ? problemResponse('invalid-input', 422)
      : jsonResponse(orders, 200, { 'X-Total-Count': '2' }),
  )
  const { router } = await renderInApp(OrdersPage, { at: '/admin/orders' })
  await screen.findByRole('link', { name: 'Order 31' })

  await router.push('/admin/orders?from=soon')

  expect(await screen.findByRole('alert')).toHaveTextContent('Some values are not accepted.')
  expect(screen.queryByRole('table')).not.toBeInTheDocument()
})

test('a page beyond the last redirects to the last', async () => {
  stubNetwork((request) =>
    jsonResponse(new URL(request.url).searchParams.get('skip') === '9975' ? orders : [], 200, {
      'X-Total-Count': '10000',
    }),
  )

  const { router } = await renderInApp(OrdersPage, { at: '/admin/orders?q=ada&page=99999' })

  await waitFor(() => expect(router.currentRoute.value.query).toEqual({ q: 'ada', page: '400' }))
  expect(await screen.findByRole('link', { name: 'Order 31' })).toBeVisible()
})
