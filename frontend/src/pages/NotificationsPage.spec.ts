import { screen, within } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { beforeEach, expect, onTestFinished, test, vi } from 'vitest'
import type { Notification } from '@/api/client'
import { setLocale } from '@/i18n'
import { renderInApp } from '@/testing/render'
import { jsonResponse, notification, problemResponse, stubNetwork } from '@/testing/api'
import { useToasts } from '@/stores/toasts'
import NotificationsPage from './NotificationsPage.vue'

let stored: Notification[]
let requests: Request[]

beforeEach(() => {
  stored = [
    notification({ id: 2, subject: 'Shipped' }),
    notification({ id: 1, subject: 'Placed', read_at: '2026-01-01T09:00:00Z' }),
  ]
  requests = stubNetwork(async (request, path) => {
    const id = Number(path.split('/').at(-1))
    if (request.method === 'PATCH')
      return jsonResponse(change(id, { read_at: (await request.json()).read ? '2026-01-02T08:00:00Z' : null }))
    if (request.method === 'POST') return jsonResponse(change(id, { status: 'sent', error_message: null }))
    return list(new URL(request.url).searchParams)
  })
})

function change(id: number, fields: Partial<Notification>) {
  stored = stored.map((one) => (one.id === id ? { ...one, ...fields } : one))
  return stored.find((one) => one.id === id)
}

function list(query: URLSearchParams) {
  const [page, size] = [Number(query.get('page') ?? 1), Number(query.get('page_size'))]
  const found = stored.filter(({ read_at }) => query.get('unread') !== 'true' || read_at === null)
  return jsonResponse({ notifications: found.slice((page - 1) * size, page * size), total: found.length })
}

const open = (at = '/notifications') => renderInApp(NotificationsPage, { at })
const item = async (name: string) => within((await screen.findByRole('link', { name })).closest('article')!)
const changes = () => requests.filter(({ method }) => method !== 'GET')

test('opening a notification marks it as read', async () => {
  const { router } = await open()

  await userEvent.click(await screen.findByRole('link', { name: 'Shipped' }))

  expect(router.currentRoute.value.fullPath).toBe('/orders/31')
  await vi.waitFor(() => expect(stored[0]!.read_at).not.toBeNull())
})

test('in German a notification has a German title and quotes its English mail', async () => {
  onTestFinished(() => setLocale('en'))
  await setLocale('de')
  stored = [notification({ order_id: 31 }), notification({ event_type: 'order_confirmation', order_id: 30 })]

  await open()

  expect(await screen.findByRole('link', { name: 'Neues zu Bestellung Nr. 31' })).toBeVisible()
  expect(screen.getByRole('link', { name: 'Bestellung Nr. 30 ist eingegangen' })).toBeVisible()
  for (const quoted of screen.getAllByText('Now we pack it.')) expect(quoted).toHaveAttribute('lang', 'en')
})

test('a notification of an unknown type shows its own subject', async () => {
  stored = [notification({ event_type: 'newsletter', subject: 'Spring is here' })]

  await open()

  expect(await screen.findByRole('link', { name: 'Spring is here' })).toBeVisible()
})

test('opening a read notification sends no request', async () => {
  await open()

  await userEvent.click(await screen.findByRole('link', { name: 'Placed' }))

  expect(changes()).toEqual([])
})

test('a notification is marked as read and unread in its place', async () => {
  await open('/notifications?unread=true')
  const row = await item('Shipped')

  await userEvent.click(row.getByRole('button', { name: 'Mark as read' }))
  await userEvent.click(await row.findByRole('button', { name: 'Mark as unread' }))

  expect(await row.findByRole('button', { name: 'Mark as read' })).toBeVisible()
  expect(stored[0]!.read_at).toBeNull()
})

test('all notifications are marked as read across pages', async () => {
  stored = Array.from({ length: 230 }, (_, i) => notification({ id: 230 - i }))
  await open()
  const button = await screen.findByRole('button', { name: 'Mark all as read' })
  await vi.waitFor(() => expect(button).toBeEnabled())

  await userEvent.click(button)

  await vi.waitFor(() => expect(button).toBeDisabled())
  expect(stored.filter(({ read_at }) => read_at === null)).toEqual([])
  expect(changes()).toHaveLength(230)
})

test('the filter shows only unread ones, and says when there are none', async () => {
  const { router } = await open('/notifications?page=2')
  await userEvent.click(await screen.findByRole('link', { name: 'Unread' }))
  await vi.waitFor(() => expect(screen.queryByRole('link', { name: 'Placed' })).not.toBeInTheDocument())
  expect(router.currentRoute.value.fullPath).toBe('/notifications?unread=true')

  await userEvent.click(screen.getByRole('button', { name: 'Mark all as read' }))

  expect(await screen.findByText('You have read everything')).toBeVisible()
})

test('a failed mail shows why and can be sent again', async () => {
  stored = [notification({ subject: 'Shipped', status: 'failed', error_message: '550 no such mailbox' })]
  await open()
  const row = await item('Shipped')
  expect(row.getByText('550 no such mailbox')).toBeVisible()

  await userEvent.click(row.getByRole('button', { name: 'Send it again' }))

  await vi.waitFor(() => expect(row.queryByRole('button', { name: 'Send it again' })).not.toBeInTheDocument())
  expect(changes().map(({ url }) => new URL(url).pathname)).toEqual(['/api/notifications/retry/1'])
})

test('an uncertain mail says so and can be sent again', async () => {
  stored = [notification({ subject: 'Shipped', status: 'uncertain' })]
  await open()
  const row = await item('Shipped')

  expect(row.getByText('The mail about this may or may not have been sent.')).toBeVisible()
  expect(row.getByRole('button', { name: 'Send it again' })).toBeVisible()
})

test('a refused retry is shown, and the list is refetched', async () => {
  stored = [notification({ subject: 'Shipped', status: 'failed' })]
  const { pinia } = await open()
  const row = await item('Shipped')
  change(1, { status: 'sent' })
  stubNetwork((request) =>
    request.method === 'POST' ? problemResponse('not-failed', 409) : list(new URL(request.url).searchParams),
  )

  await userEvent.click(row.getByRole('button', { name: 'Send it again' }))

  await vi.waitFor(() =>
    expect(useToasts(pinia).toasts.map(({ title }) => title)).toEqual(['This mail has not failed (any more).']),
  )
  await vi.waitFor(() => expect(row.queryByRole('button', { name: 'Send it again' })).not.toBeInTheDocument())
})

test('a user without notifications sees an explanation', async () => {
  stored = []

  await open()

  expect(await screen.findByText('Quiet as a forest at dawn')).toBeVisible()
})
