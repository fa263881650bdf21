import { screen } from '@testing-library/vue'
import { disposePinia } from 'pinia'
import { afterEach, beforeEach, expect, onTestFinished, test, vi } from 'vitest'
import { clearToken, setToken } from '@/api/token'
import type { Notification } from '@/api/client'
import { setLocale } from '@/i18n'
import { renderInApp } from '@/testing/render'
import { jsonResponse, notification, stubNetwork } from '@/testing/api'
import { latestSocket, stubSockets } from '@/testing/socket'
import { type PushedNotification, useLiveFeed } from '@/stores/liveFeed'
import { useToasts } from '@/stores/toasts'
import AppToasts from '@/components/AppToasts.vue'
import { useNotificationToasts } from './useNotificationToasts'

let stored: Notification[]
let requests: Request[]
let isHidden: boolean

beforeEach(() => {
  stored = []
  isHidden = false
  vi.spyOn(document, 'hidden', 'get').mockImplementation(() => isHidden)
  stubSockets()
  setToken('a-token')
  requests = stubNetwork((request) => {
    const query = new URL(request.url).searchParams
    const after = stored.filter(({ id }) => id > Number(query.get('after_id')))
    const sorted = query.has('after_id') ? after : [...after].reverse()
    return jsonResponse({ notifications: sorted.slice(0, Number(query.get('page_size'))), total: after.length })
  })
})
afterEach(clearToken)

/** Opens a tab, which reads the existing notifications. */
async function openTab({ userId = 7 } = {}) {
  const { pinia, unmount } = await renderInApp({ setup: () => void useNotificationToasts(userId), template: '<div />' })
  const live = useLiveFeed(pinia)
  live.open()
  const socket = latestSocket()
  await reconnect(socket, userId)
  const toasts = useToasts(pinia)
  const titles = () => toasts.toasts.map(({ title }) => title)
  return {
    socket,
    titles,
    close: () => (unmount(), disposePinia(pinia)),
    reconnect: () => reconnect(socket, userId),
    toasts,
  }
}

async function reconnect(socket: ReturnType<typeof latestSocket>, userId: number) {
  const asked = requests.length
  socket.greet()
  socket.receive({ type: 'authenticated', user_id: userId })
  await vi.waitFor(() => expect(requests.length).toBeGreaterThan(asked))
}

const store = (id: number) => stored.push(notification({ id, subject: `News ${id}` }))
function push(socket: ReturnType<typeof latestSocket>, id: number, { order_id = 30 + id, sequence = 1 } = {}) {
  const { event_type, subject, message } = notification({ subject: `News ${id}` })
  const data: PushedNotification = { id, event_type, subject, message, order_id, sequence, timestamp: '' }
  socket.receive({ type: 'notification', data })
}

test('a pushed notification shows as a toast with a link to its order', async () => {
  const tab = await openTab()

  push(tab.socket, 1)

  expect(tab.titles()).toEqual(['News 1'])
  expect(tab.toasts.toasts[0]!.link!.to).toEqual({ name: 'order', params: { id: 31 } })
  tab.close()
})

test('an earlier step pushed after a later one is never shown, not even after a reconnect', async () => {
  const tab = await openTab()
  const step = (id: number, sequence: number, order_id = 31) => {
    stored.push(notification({ id, order_id, subject: `News ${id}` }))
    push(tab.socket, id, { order_id, sequence })
  }

  step(2, 3)
  step(1, 2)
  step(3, 1, 32)
  await tab.reconnect()

  expect(tab.titles()).toEqual(['News 2', 'News 3'])
  tab.close()
})

test("following a toast's link marks the notification as read", async () => {
  const tab = await openTab()
  push(tab.socket, 1)

  tab.toasts.toasts[0]!.link!.run!()

  await vi.waitFor(() =>
    expect(requests.map(({ method, url }) => `${method} ${new URL(url).pathname}`)).toContain(
      'PATCH /api/notifications/1',
    ),
  )
  tab.close()
})

test("a toast's title is in the chosen language and the mail is quoted in English", async () => {
  onTestFinished(() => setLocale('en'))
  await setLocale('de')
  const tab = await openTab()
  push(tab.socket, 1)

  const [toast] = tab.toasts.toasts
  tab.close()
  const { pinia } = await renderInApp(AppToasts)
  useToasts(pinia).show(toast!)

  expect(await screen.findByText('Neues zu Bestellung Nr. 31')).toBeVisible()
  expect(screen.getByText('Now we pack it.')).toHaveAttribute('lang', 'en')
})

test('notifications from before the tab was opened are not shown', async () => {
  store(1)

  const tab = await openTab()
  store(2)
  await tab.reconnect()

  await vi.waitFor(() => expect(tab.titles()).toEqual(['News 2']))
  tab.close()
})

test('missed notifications show once after a reconnect', async () => {
  store(1)
  const tab = await openTab()
  store(2)

  await tab.reconnect()
  await vi.waitFor(() => expect(tab.titles()).toEqual(['News 2']))
  store(3)
  await tab.reconnect()
  push(tab.socket, 2)

  await vi.waitFor(() => expect(tab.titles()).toEqual(['News 2', 'News 3']))
  tab.close()
})

test('many missed notifications are summed up in one toast', async () => {
  const tab = await openTab()
  for (let id = 1; id <= 150; id++) store(id)

  await tab.reconnect()
  await vi.waitFor(() => expect(tab.titles()).toEqual(['150 new messages']))
  push(tab.socket, 150)

  expect(tab.titles()).toEqual(['150 new messages'])
  tab.close()
})

test('a toast shown in one tab is not shown in another', async () => {
  const first = await openTab()
  const second = await openTab()

  push(first.socket, 1)
  push(second.socket, 1)

  expect([first.titles(), second.titles()]).toEqual([['News 1'], []])
  first.close()
  second.close()
})

test('a toast shown before a reload is not shown after it', async () => {
  const before = await openTab()
  push(before.socket, 1)
  before.close()

  const after = await openTab()
  push(after.socket, 1)

  expect(after.titles()).toEqual([])
  after.close()
})

test('two notifications pushed in reverse order are both shown, each once', async () => {
  const tab = await openTab()

  for (const id of [6, 5, 6, 5]) push(tab.socket, id)

  expect(tab.titles()).toEqual(['News 6', 'News 5'])
  tab.close()
})

test('a notification toasted long ago is not shown again', async () => {
  const tab = await openTab()
  for (let id = 1; id <= 60; id++) push(tab.socket, id)

  push(tab.socket, 1)

  expect(tab.titles()).toEqual(['News 58', 'News 59', 'News 60'])
  tab.close()
})

test('a hidden tab shows its toasts once it is visible', async () => {
  const tab = await openTab()
  isHidden = true
  store(1)
  push(tab.socket, 1)
  expect(tab.titles()).toEqual([])

  isHidden = false
  document.dispatchEvent(new Event('visibilitychange'))

  await vi.waitFor(() => expect(tab.titles()).toEqual(['News 1']))
  tab.close()
})

test('toasts of one user do not hold back those of the next', async () => {
  const ada = await openTab()
  push(ada.socket, 9)

  ada.close()
  const bo = await openTab({ userId: 8 })
  push(bo.socket, 3)

  expect(bo.titles()).toEqual(['News 3'])
  bo.close()
})
