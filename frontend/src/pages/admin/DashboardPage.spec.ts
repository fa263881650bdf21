import { screen, within } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { beforeAll, expect, test } from 'vitest'
import type { Summary } from '@/api/admin'
import { loadAdminMessages } from '@/i18n'
import { renderInApp } from '@/testing/render'
import { jsonResponse, product, stubNetwork } from '@/testing/api'
import DashboardPage from './DashboardPage.vue'

beforeAll(loadAdminMessages)

const summary: Summary = {
  days: 30,
  orders: {
    today: { orders: 4, revenue: '99.80' },
    by_status: { pending: 1, confirmed: 2, shipped: 3, delivered: 10000, cancelled: 5 },
    daily: [
      { date: '2026-10-24', orders: 1, revenue: '1234567.89' },
      { date: '2026-10-25', orders: 4, revenue: '99.80' },
    ],
  },
  stock: { low_stock_threshold: 5, low: 1, products: [product({ id: 9, stock_quantity: 2 })] },
  mails: { failed: 3, pending: 1, uncertain: 0 },
  parked: { products: 2, notifications: 1 },
}

async function show(changes: Partial<Summary> = {}) {
  stubNetwork(() => jsonResponse({ ...summary, ...changes }))
  await renderInApp(DashboardPage, { at: '/admin' })
  await screen.findByText('Orders today')
}

test('uncertain mails show beside the failed ones', async () => {
  await show({ mails: { failed: 3, pending: 1, uncertain: 2 } })

  expect(screen.getByRole('link', { name: 'Failed mails 3 1 on their way, 2 uncertain' })).toBeVisible()
})

test('the metrics of the day link to their lists', async () => {
  await show()

  expect(screen.getByRole('link', { name: 'Revenue today €99.80' })).toHaveAttribute('href', '/admin/orders')
  expect(screen.getByRole('link', { name: 'Failed mails 3 1 on their way' })).toHaveAttribute(
    'href',
    '/admin/notifications',
  )
  expect(screen.getByRole('link', { name: 'Parked messages 3' })).toHaveAttribute('href', '/admin/parked')
  expect(screen.getByRole('link', { name: 'Chanterelles, 250 g 2 left' })).toHaveAttribute('href', '/admin/products/9')
  expect(screen.getByRole('link', { name: 'Delivered 10,000' })).toHaveAttribute(
    'href',
    '/admin/orders?status=delivered',
  )
})

test('the low-stock metric leads to its list', async () => {
  await show()
  const heading = screen.getByRole('heading', { name: 'Low stock' })

  const tile = screen.getByRole('link', { name: /^Low stock/ })
  await userEvent.click(tile)

  expect(tile).toHaveAttribute('href', '/admin#low-stock')
  expect(heading).toHaveFocus()
})

test("the chart's data is available as a table, newest first", async () => {
  await show()

  await userEvent.click(screen.getByText('Show as a table'))

  const [, first, second] = within(screen.getByRole('table')).getAllByRole('row')
  expect(first).toHaveTextContent(/Oct 25, 2026\s*4\s*€99.80/)
  expect(second).toHaveTextContent(/Oct 24, 2026\s*1\s*€1,234,567.89/)
})

test('the arrow keys read the chart day by day', async () => {
  await show()
  const chart = screen.getByRole('slider', { name: 'Orders' })
  expect(chart).toHaveAttribute('aria-valuetext', 'Oct 25: 4 orders')

  chart.focus()
  await userEvent.keyboard('{ArrowLeft}')

  expect(chart).toHaveAttribute('aria-valuetext', 'Oct 24: 1 order')
})

test('a stopped service leaves only its own figures unavailable', async () => {
  await show({ orders: null, mails: null, parked: { products: 2, notifications: null } })

  expect(screen.getByRole('link', { name: 'Orders today Not answering' })).toBeVisible()
  expect(screen.getByRole('link', { name: 'Failed mails Not answering' })).toBeVisible()
  expect(screen.getByRole('link', { name: 'Parked messages 2 Not answering: notifications' })).toBeVisible()
  expect(screen.getByText('Chanterelles, 250 g')).toBeVisible()
  expect(screen.queryByRole('table')).not.toBeInTheDocument()
})
