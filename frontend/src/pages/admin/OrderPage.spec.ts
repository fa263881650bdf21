import { screen, waitFor, within } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { beforeAll, beforeEach, expect, test } from 'vitest'
import type { OrderStatus } from '@/api/client'
import { loadAdminMessages } from '@/i18n'
import { useSession } from '@/stores/session'
import { useToasts } from '@/stores/toasts'
import { renderInApp } from '@/testing/render'
import { jsonResponse, order, problemResponse, stubNetwork } from '@/testing/api'
import OrderPage from './OrderPage.vue'

beforeAll(loadAdminMessages)

let status: OrderStatus
let requests: Request[]
let change: (status: OrderStatus) => Response | Promise<Response>
beforeEach(() => {
  status = 'pending'
  change = (next) => jsonResponse(order({ status: (status = next) }))
  requests = stubNetwork(async (request, path) => {
    if (request.method === 'PATCH') return change((await request.json()).status)
    if (path === '/api/orders/31') return jsonResponse(order({ status }))
    if (path === '/api/notifications') return jsonResponse({ notifications: [], total: 0 })
    return jsonResponse({ items: [], total: 0, limit: 20, offset: 0 })
  })
})

let shown: Awaited<ReturnType<typeof renderInApp>>
async function show() {
  shown = await renderInApp(OrderPage, { at: '/admin/orders/31' })
  return within(await screen.findByRole('region', { name: 'Next step' }))
}
const changes = () => requests.filter((request) => request.method === 'PATCH')

test.each([
  ['pending', ['Confirm', 'Cancel the order']],
  ['confirmed', ['Mark as shipped', 'Cancel the order']],
  ['shipped', ['Mark as delivered']],
  ['delivered', []],
  ['cancelled', []],
] as const)('an order that is %s offers its legal next steps', async (before, steps) => {
  status = before

  const next = await show()

  expect(next.queryAllByRole('button').map((button) => button.textContent)).toEqual(steps)
})

test('several clicks change the status once', async () => {
  const button = (await show()).getByRole('button', { name: 'Confirm' })

  button.click()
  button.click()

  expect(await screen.findByRole('button', { name: 'Mark as shipped' })).toBeVisible()
  expect(changes()).toHaveLength(1)
})

test('the heading gets the focus once the pressed button is gone', async () => {
  const next = await show()

  await userEvent.click(next.getByRole('button', { name: 'Confirm' }))

  await waitFor(() => expect(screen.getByRole('heading', { level: 1 })).toHaveFocus())
})

test('closing the cancel dialog changes nothing', async () => {
  const next = await show()
  await userEvent.click(next.getByRole('button', { name: 'Cancel the order' }))

  await userEvent.click(within(await screen.findByRole('dialog')).getByRole('button', { name: 'Go back' }))

  await waitFor(() => expect(next.getByRole('button', { name: 'Cancel the order' })).toHaveFocus())
})

test('a status change answered after a logout does not reach the next user', async () => {
  let reply: (response: Response) => void = () => {}
  change = () => new Promise((resolve) => (reply = resolve))
  const next = await show()
  await userEvent.click(next.getByRole('button', { name: 'Confirm' }))

  // Like a logout.
  const { pinia, queryClient } = shown
  useSession(pinia).visit++
  queryClient.clear()
  reply(jsonResponse(order({ status: 'confirmed' })))

  await waitFor(() => expect(next.getByRole('button', { name: 'Confirm' })).not.toHaveAttribute('aria-busy'))
  expect(queryClient.getQueryData(['order', 31])).toBeUndefined()
  expect(useToasts(pinia).toasts).toEqual([])
})

test('a cancellation needs confirmation', async () => {
  const next = await show()

  await userEvent.click(next.getByRole('button', { name: 'Cancel the order' }))
  const question = within(await screen.findByRole('dialog', { name: 'Cancel order 31?' }))
  expect(changes()).toHaveLength(0)
  await userEvent.click(question.getByRole('button', { name: 'Cancel the order' }))

  expect(await screen.findByText('This order is finished: nothing is left to do.')).toBeVisible()
  await waitFor(() => expect(screen.queryByRole('dialog')).not.toBeInTheDocument())
  await waitFor(() => expect(screen.getByRole('heading', { level: 1 })).toHaveFocus())
})

test('an illegal step is explained, and the order is refetched', async () => {
  const next = await show()
  change = () => problemResponse('illegal-transition', 409)
  status = 'cancelled'

  await userEvent.click(next.getByRole('button', { name: 'Confirm' }))

  expect(await screen.findByText('The order has moved on meanwhile; this step is no longer possible.')).toBeVisible()
  expect(await screen.findByText('This order is finished: nothing is left to do.')).toBeVisible()
})
