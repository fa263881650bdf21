import { screen, waitFor, within } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import type { ParkedMessage } from '@/api/admin'
import { loadAdminMessages } from '@/i18n'
import { useToasts } from '@/stores/toasts'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork } from '@/testing/api'
import ParkedPage from './ParkedPage.vue'

beforeAll(loadAdminMessages)
afterEach(() => void vi.useRealTimers())

const message = (id: string, fields: Partial<ParkedMessage> = {}): ParkedMessage => ({
  service: 'notifications',
  id,
  queue: 'evt-orders-order.created--notifications.notify_customer',
  reason: `reason ${id}`,
  attempts: 1,
  parked_at: '2026-01-01T08:00:00Z',
  body: '{"order_id": 7}',
  ...fields,
})

let messages: ParkedMessage[]
let away: string[]
let requests: Request[]
let total: number | undefined
let act: () => Response
beforeEach(() => {
  messages = [
    message('a'),
    message('b', { service: 'products', queue: 'evt-orders-order.created--products.commit_reservation' }),
  ]
  away = []
  total = undefined
  act = () => new Response(null, { status: 204 })
  requests = stubNetwork((request, path) => {
    if (request.method === 'GET')
      return jsonResponse({ messages, total: total ?? messages.length, limit: 20, offset: 0, away })
    messages = messages.filter(({ id }) => !path.split('/').includes(id))
    return act()
  })
})

const actions = () =>
  requests.filter(({ method }) => method !== 'GET').map(({ method, url }) => `${method} ${new URL(url).pathname}`)
const gone = (text: string) => waitFor(() => expect(screen.queryByText(text)).not.toBeInTheDocument())

test('a message shows its reason and body', async () => {
  await renderInApp(ParkedPage)

  const article = within((await screen.findByRole('heading', { name: 'reason a' })).closest('article')!)
  expect(article.getByText('evt-orders-order.created--notifications.notify_customer')).toBeVisible()
  expect(article.getByText(/"order_id": 7/).textContent).toBe('{\n  "order_id": 7\n}')
})

test('a body that is not JSON shows unchanged', async () => {
  messages = [message('a', { body: 'hello {' })]

  await renderInApp(ParkedPage)

  expect(await screen.findByText('hello {')).toBeInTheDocument()
})

test('a replayed message disappears', async () => {
  const { pinia } = await renderInApp(ParkedPage)

  await userEvent.click(await screen.findByRole('button', { name: 'Replay: reason b' }))

  await gone('reason b')
  expect(actions()).toEqual(['POST /api/admin/parked/products/b/replay'])
  await waitFor(() => expect(screen.getByRole('heading', { level: 1 })).toHaveFocus())
  expect(useToasts(pinia).toasts).toMatchObject([{ kind: 'success' }])
})

test('a message that is already gone says so and disappears', async () => {
  act = () => problemResponse('parked-message-not-found', 404)
  const { pinia } = await renderInApp(ParkedPage)

  await userEvent.click(await screen.findByRole('button', { name: 'Replay: reason a' }))

  await gone('reason a')
  expect(useToasts(pinia).toasts).toMatchObject([{ kind: 'error', title: 'This message is not parked any more.' }])
})

test('a message is discarded after confirmation', async () => {
  await renderInApp(ParkedPage)

  await userEvent.click(await screen.findByRole('button', { name: 'Discard: reason a' }))
  const question = within(await screen.findByRole('dialog', { name: 'Discard this message?' }))
  expect(actions()).toEqual([])
  await userEvent.click(question.getByRole('button', { name: 'Discard' }))

  await gone('reason a')
  expect(actions()).toEqual(['DELETE /api/admin/parked/notifications/a'])
  await waitFor(() => expect(screen.getByRole('heading', { level: 1 })).toHaveFocus())
})

test('unreachable services are named beside the messages of the others', async () => {
  away = ['products']

  await renderInApp(ParkedPage)

  expect(await screen.findByText('Not answering: products')).toBeVisible()
  expect(screen.getByText('reason a')).toBeVisible()
})

test('the list is refetched periodically', async () => {
  vi.useFakeTimers({ shouldAdvanceTime: true })
  await renderInApp(ParkedPage)
  await screen.findByText('reason a')

  messages = [...messages, message('c')]
  await vi.advanceTimersByTimeAsync(15_000)

  expect(await screen.findByText('reason c')).toBeVisible()
})

const progress = (done: number, kept: number, left: number) => jsonResponse({ done, kept, left })
const bodies = () =>
  Promise.all(requests.filter(({ method }) => method === 'POST').map((request) => request.clone().json()))

async function settleAll(button: string, title: string) {
  await userEvent.click(await screen.findByRole('button', { name: button }))
  await userEvent.click(
    within(await screen.findByRole('dialog', { name: title })).getByRole('button', { name: button }),
  )
}

test('all messages are replayed in batches, service by service', async () => {
  const answers = [progress(500, 0, 250), progress(249, 1, 0), progress(3, 0, 0)]
  act = () => answers.shift()!
  await renderInApp(ParkedPage)

  await settleAll('Replay all', 'Replay all of these messages?')

  expect(await screen.findByText('752 were replayed. 1 stays parked.')).toBeVisible()
  expect(new Set(actions())).toEqual(new Set(['POST /api/admin/parked/replay']))
  expect((await bodies()).map(({ service, left }) => [service, left])).toEqual([
    ['products', null],
    ['products', 250],
    ['notifications', null],
  ])
})

test("discarding by queue and reason asks only that queue's service", async () => {
  act = () => progress(1, 1, 0)
  await renderInApp(ParkedPage)
  const queue = 'evt-orders-order.created--notifications.notify_customer'
  messages = [message('a')]

  await userEvent.selectOptions(await screen.findByLabelText('Queue'), queue)
  await userEvent.type(screen.getByLabelText(/Reason contains/), 'no plate')
  await settleAll('Discard all', 'Discard all of these messages?')

  expect(await screen.findByText('1 was discarded. 1 stays parked.')).toBeVisible()
  expect(actions()).toHaveLength(1)
  expect(await bodies()).toEqual([{ service: 'notifications', queue, reason: 'no plate', left: null }])
})

test('a service that refuses is reported, and the other is still asked', async () => {
  const answers = [problemResponse('service-unavailable', 503), progress(2, 0, 0)]
  act = () => answers.shift()!
  await renderInApp(ParkedPage)

  await settleAll('Replay all', 'Replay all of these messages?')

  expect(await screen.findByText('2 were replayed.')).toBeVisible()
  expect(screen.getByRole('alert')).toBeVisible()
})

test('a very long list says that not all messages are listed', async () => {
  total = 40_000

  await renderInApp(ParkedPage)

  expect(
    await screen.findByText('40,000 messages are parked. Only the oldest 1,000 of each service are listed.'),
  ).toBeVisible()
})
