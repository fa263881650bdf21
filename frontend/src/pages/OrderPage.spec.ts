import { screen, within } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { beforeEach, expect, onTestFinished, test, vi } from 'vitest'
import type { Notification, Order } from '@/api/client'
import { setLocale } from '@/i18n'
import { renderInApp } from '@/testing/render'
import { jsonResponse, notification, order, problemResponse, product, stubNetwork, user } from '@/testing/api'
import { useSession } from '@/stores/session'
import OrderPage from './OrderPage.vue'

const placed = { status: 'pending', at: '2026-01-01T08:00:00Z', by: 'customer' } as const
const confirmed = { status: 'confirmed', at: '2026-01-01T09:00:00Z', by: 'admin' } as const
const shipped = { status: 'shipped', at: '2026-01-02T09:00:00Z', by: 'admin' } as const
const line = {
  id: 1,
  order_id: 31,
  product_id: 1,
  product_name: 'Chanterelles, 250 g',
  product_price: '14.50',
  quantity: 2,
  subtotal: '29.00',
  created_at: placed.at,
}

let stored: Order
let mails: Notification[]
let requests: Request[]
let replyToCancel: () => Response | Promise<Response>

beforeEach(() => {
  stored = order({ items: [line], history: [placed] })
  mails = [notification({ subject: 'Thank you! We have your order 31', created_at: '2026-01-01T08:00:01Z' })]
  replyToCancel = () =>
    jsonResponse(
      (stored = { ...stored, status: 'cancelled', history: [...stored.history, { ...placed, status: 'cancelled' }] }),
    )
  requests = stubNetwork((request, path) => {
    if (path === '/api/orders/31/status') return replyToCancel()
    if (path === '/api/orders/31') return jsonResponse(stored)
    if (path.startsWith('/api/products/')) return jsonResponse(product())
    if (path === '/api/notifications') return jsonResponse({ notifications: mails, total: mails.length })
    return problemResponse('order-not-found', 404)
  })
})

async function open(at = '/orders/31') {
  const rendered = await renderInApp(OrderPage, { at })
  useSession(rendered.pinia).user = user()
  return rendered
}

const cancels = () => requests.filter(({ method }) => method === 'PATCH')

async function askToCancel() {
  await userEvent.click(await screen.findByRole('button', { name: 'Cancel order' }))
  return within(await screen.findByRole('dialog'))
}

test('an order shows its lines as sold and its history in order', async () => {
  stored = order({ status: 'confirmed', items: [line], history: [placed, confirmed] })

  await open()

  expect(await screen.findByRole('heading', { level: 1, name: 'Order no. 31' })).toBeVisible()
  const row = within(await screen.findByRole('row', { name: /Chanterelles/ }))
  expect(row.getAllByRole('cell').map(({ textContent }) => textContent)).toEqual(['€14.50', '2', '€29.00'])
  const entries = within(await screen.findByRole('list', { name: 'What happened' })).getAllByRole('listitem')
  expect(entries.map(({ textContent }) => textContent)).toEqual([
    expect.stringContaining('Order placed'),
    expect.stringMatching(/Mail: Thank you.*Sent/),
    expect.stringMatching(/Confirmed.*by the shop/),
  ])
})

test("an order's mails have titles in the chosen language", async () => {
  onTestFinished(() => setLocale('en'))
  await setLocale('de')

  await open()

  expect(await screen.findByText('Neues zu Bestellung Nr. 31')).toBeVisible()
})

test('the thank-you message shows once, not after a reload', async () => {
  const { router } = await open('/orders/31?placed=1')

  expect(await screen.findByText('Thank you! We have your order.')).toBeVisible()
  await vi.waitFor(() => expect(router.currentRoute.value.fullPath).toBe('/orders/31'))
})

test('a pending mail is polled until it is sent', async () => {
  mails = [notification({ status: 'pending' })]
  await open()
  const timeline = within(await screen.findByRole('list', { name: 'What happened' }))
  expect(await timeline.findByText('Pending')).toBeVisible()

  mails = [notification({ status: 'sent' })]

  expect(await timeline.findByText('Sent')).toBeVisible()
})

test('an order is cancelled after confirmation by one request', async () => {
  await open()

  const dialog = await askToCancel()
  await userEvent.dblClick(dialog.getByRole('button', { name: 'Cancel order' }))

  expect(await screen.findByText(/This order was cancelled/)).toBeVisible()
  expect(screen.queryByRole('dialog')).not.toBeInTheDocument()
  expect(screen.queryByRole('button', { name: 'Cancel order' })).not.toBeInTheDocument()
  expect(cancels()).toHaveLength(1)
  await vi.waitFor(() => expect(document.activeElement).toHaveTextContent(/This order was cancelled/))
})

test('closing the dialog keeps the order', async () => {
  await open()

  const dialog = await askToCancel()
  await userEvent.click(dialog.getByRole('button', { name: 'Go back' }))

  expect(screen.queryByRole('dialog')).not.toBeInTheDocument()
  expect(cancels()).toHaveLength(0)
})

test('an order that has moved on says so and shows its status', async () => {
  await open()
  const dialog = await askToCancel()
  stored = { ...stored, status: 'shipped', history: [placed, confirmed, shipped] }
  replyToCancel = () => problemResponse('illegal-transition', 409)

  await userEvent.click(dialog.getByRole('button', { name: 'Cancel order' }))

  expect(await screen.findByText(/The order has moved on meanwhile/)).toBeVisible()
  expect(within(await screen.findByRole('status')).getByText('Shipped')).toBeVisible()
  expect(screen.queryByRole('button', { name: 'Cancel order' })).not.toBeInTheDocument()
})

test('repeating a cancellation whose answer was lost is no failure', async () => {
  await open()
  const dialog = await askToCancel()
  replyToCancel = () => {
    stored = { ...stored, status: 'cancelled', history: [...stored.history, { ...placed, status: 'cancelled' }] }
    return problemResponse('timeout', 504)
  }
  await userEvent.click(dialog.getByRole('button', { name: 'Cancel order' }))
  await dialog.findByText(/took too long/)
  replyToCancel = () => problemResponse('illegal-transition', 409)

  await userEvent.click(dialog.getByRole('button', { name: 'Cancel order' }))

  expect(await screen.findByText(/This order was cancelled/)).toBeVisible()
  expect(screen.queryByText(/has moved on meanwhile/)).not.toBeInTheDocument()
})

test('without an answer the dialog stays open for another try', async () => {
  await open()
  const dialog = await askToCancel()
  const cancel = replyToCancel
  replyToCancel = () => problemResponse('service-unavailable', 503)

  await userEvent.click(dialog.getByRole('button', { name: 'Cancel order' }))
  expect(await dialog.findByText(/A part of the shop is down/)).toBeVisible()
  replyToCancel = cancel
  await userEvent.click(dialog.getByRole('button', { name: 'Cancel order' }))

  expect(await screen.findByText(/This order was cancelled/)).toBeVisible()
})

test.each(['shipped', 'delivered', 'cancelled'] as const)('an order that is %s cannot be cancelled', async (status) => {
  stored = order({ status, items: [line], history: [placed] })

  await open()
  await screen.findByRole('table')

  expect(screen.queryByRole('button', { name: 'Cancel order' })).not.toBeInTheDocument()
})

test('an order that does not exist, or belongs to another user, is not found', async () => {
  await open('/orders/99')

  expect(await screen.findByText('There is no order no. 99')).toBeVisible()
  expect(screen.getByRole('link', { name: 'All orders' })).toHaveAttribute('href', '/orders')
})

test('a failed load of the order can be retried', async () => {
  const before = stored
  stubNetwork(() => problemResponse('service-unavailable', 503))
  await open()
  const retry = await screen.findByRole('button', { name: 'Try again' })
  stubNetwork((_, path) => jsonResponse(path === '/api/orders/31' ? before : { notifications: [], total: 0 }))

  await userEvent.click(retry)

  expect(await screen.findByRole('table')).toBeVisible()
})
