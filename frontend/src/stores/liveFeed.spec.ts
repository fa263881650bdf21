import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { nextTick } from 'vue'
import { backoffMs } from '@/utils/backoff'
import { clearToken, currentToken, setToken } from '@/api/token'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork, user } from '@/testing/api'
import { FakeSocket, latestSocket, stubSockets } from '@/testing/socket'
import { useLiveFeed } from './liveFeed'
import { useSession } from './session'

let requests: Request[]
let pinia: Pinia | undefined

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] })
  stubSockets()
  requests = stubNetwork(() => jsonResponse({ access_token: 'fresh', token_type: 'bearer', expires_in: 900 }))
})
afterEach(() => {
  vi.useRealTimers()
  clearToken()
  if (pinia) disposePinia(pinia)
  pinia = undefined
})

async function openLive() {
  const rendered = await renderInApp({ setup: () => void useLiveFeed(), template: '<div />' })
  pinia = rendered.pinia
  const store = useLiveFeed(pinia)
  store.open()
  return { store, session: useSession(pinia) }
}

const seconds = (count: number) => vi.advanceTimersByTimeAsync(count * 1000)

/** Waits for the next attempt, at most for the longest pause. */
async function nextSocket() {
  const known = FakeSocket.all.length
  for (let tenths = 0; tenths < 300 && FakeSocket.all.length === known; tenths++) await seconds(0.1)
  expect(FakeSocket.all).toHaveLength(known + 1)
}

test('pauses grow to half a minute and are random', () => {
  expect([1, 2, 3, 4, 5, 6, 1000].map((attempt) => backoffMs(attempt, 1))).toEqual([
    1000, 2000, 4000, 8000, 16000, 30000, 30000,
  ])
  expect(backoffMs(3, 0)).toBe(2000)
})

test('a lost connection is reopened after any number of failures', async () => {
  const { store } = await openLive()

  for (let attempt = 1; attempt <= 50; attempt++) {
    latestSocket().disconnect()
    await nextSocket()
  }

  latestSocket().greet()
  expect(store.isOpen).toBe(true)
})

test('the pauses start over after a stable connection', async () => {
  await openLive()
  for (let attempt = 1; attempt <= 6; attempt++) {
    latestSocket().disconnect()
    await nextSocket()
  }
  latestSocket().greet()
  await seconds(21)

  latestSocket().disconnect()
  await seconds(1)

  expect(FakeSocket.all).toHaveLength(8)
})

test('a gateway that greets and closes at once is retried with growing pauses', async () => {
  await openLive()
  for (let attempt = 1; attempt <= 6; attempt++) {
    latestSocket().greet()
    latestSocket().disconnect()
    await nextSocket()
  }

  latestSocket().greet()
  latestSocket().disconnect()
  await seconds(14)

  expect(FakeSocket.all).toHaveLength(7)
})

test('a socket without an answer to a ping is replaced', async () => {
  const { store } = await openLive()
  latestSocket().greet()
  latestSocket().isUnresponsive = true

  await seconds(20)
  expect(latestSocket().sentOf('ping')).toHaveLength(1)
  await seconds(8)

  expect(store.isOpen).toBe(false)
  await seconds(1)
  expect(FakeSocket.all).toHaveLength(2)
})

test('a connection attempt without an answer is replaced', async () => {
  await openLive()

  await seconds(9)

  expect(FakeSocket.all).toHaveLength(2)
})

test('the feed reconnects at once when the network is back', async () => {
  await openLive()
  for (let attempt = 1; attempt <= 6; attempt++) {
    latestSocket().disconnect()
    await nextSocket()
  }
  latestSocket().disconnect()

  window.dispatchEvent(new Event('online'))

  expect(FakeSocket.all).toHaveLength(8)
})

test('a ping is sent when the page becomes visible again', async () => {
  await openLive()
  latestSocket().greet()

  document.dispatchEvent(new Event('visibilitychange'))

  expect(latestSocket().sentOf('ping')).toHaveLength(1)
})

test('the token is sent after every reconnect', async () => {
  setToken('a-token')
  const { store } = await openLive()
  const back = vi.fn()
  store.onAuthenticated(back)

  latestSocket().greet()
  latestSocket().receive({ type: 'authenticated', user_id: 7 })
  latestSocket().disconnect()
  await seconds(2)
  latestSocket().greet()
  latestSocket().receive({ type: 'authenticated', user_id: 7 })

  expect(latestSocket().sentOf('authenticate')).toEqual([{ type: 'authenticate', token: 'a-token' }])
  expect(back).toHaveBeenCalledTimes(2)
})

test('logging in authenticates the open feed', async () => {
  const { session } = await openLive()
  latestSocket().greet()
  expect(latestSocket().sentOf('authenticate')).toEqual([])

  setToken('a-token')
  session.user = user()
  await seconds(0)

  expect(latestSocket().sentOf('authenticate')).toHaveLength(1)
})

test('logging out replaces the socket, and late messages of the old one are ignored', async () => {
  setToken('a-token')
  const { store, session } = await openLive()
  session.user = user()
  await seconds(0)
  const heard = vi.fn()
  store.onNotification(heard)
  const first = latestSocket()
  first.greet()
  first.receive({ type: 'authenticated', user_id: 7 })

  clearToken()
  session.user = null
  await seconds(0)
  first.receive({ type: 'notification', data: { id: 1 } })
  latestSocket().greet()

  expect(first.readyState).toBe(FakeSocket.CLOSED)
  expect(latestSocket()).not.toBe(first)
  expect(latestSocket().sentOf('authenticate')).toEqual([])
  expect(store.isAuthenticated).toBe(false)
  expect(heard).not.toHaveBeenCalled()
})

test('a token that expires is renewed on the same socket', async () => {
  setToken('old')
  await openLive()
  latestSocket().greet()
  latestSocket().receive({ type: 'authenticated', user_id: 7 })

  latestSocket().receive({ type: 'expired' })
  await vi.waitFor(() =>
    expect(latestSocket().sentOf('authenticate').at(-1)).toEqual({ type: 'authenticate', token: 'fresh' }),
  )

  expect(FakeSocket.all).toHaveLength(1)
})

test('a refused token is renewed and sent again after growing pauses', async () => {
  vi.spyOn(console, 'warn').mockReturnValue()
  setToken('old')
  await openLive()
  latestSocket().greet()

  for (let attempt = 1; attempt <= 3; attempt++) {
    latestSocket().receive({ type: 'error', detail: 'The token has expired.' })
    await seconds(30)
    expect(latestSocket().sentOf('authenticate')).toHaveLength(attempt + 1)
  }

  latestSocket().receive({ type: 'error', detail: 'A user may have 20 sockets at most.' })
  await seconds(3)
  expect(latestSocket().sentOf('authenticate')).toHaveLength(4)
})

test('a failed renewal of the token is retried', async () => {
  setToken('old')
  await openLive()
  latestSocket().greet()
  stubNetwork(() => problemResponse('service-unavailable', 503))
  latestSocket().receive({ type: 'expired' })
  await seconds(0)
  expect(currentToken()).toBe('old')

  stubNetwork(() => jsonResponse({ access_token: 'fresh' }))
  await seconds(1)

  await vi.waitFor(() => expect(latestSocket().sentOf('authenticate').at(-1)?.token).toBe('fresh'))
})

test('invalid messages are ignored', async () => {
  const complaint = vi.spyOn(console, 'error').mockReturnValue()
  const { store } = await openLive()
  const heard = vi.fn()
  store.onProduct(heard)
  latestSocket().greet()

  for (const broken of ['<html>', 'null', '7', '{}', '{"type":7}']) latestSocket().receive(broken)
  latestSocket().receive({ type: 'product', data: { id: 1, revision: 1 } })

  expect(complaint).toHaveBeenCalledTimes(5)
  expect(heard).toHaveBeenCalledTimes(1)
})

test('an update with an older revision is ignored', async () => {
  const { store } = await openLive()
  const heard = vi.fn()
  store.onProduct(heard)
  latestSocket().greet()

  for (const revision of [5, 4, 5, 6]) latestSocket().receive({ type: 'product', data: { id: 1, revision } })

  expect(heard.mock.calls.map(([news]) => news.revision)).toEqual([5, 6])
})

test('the list of watched products is sent at once and then throttled', async () => {
  const { store } = await openLive()
  latestSocket().greet()
  await seconds(1)
  expect(latestSocket().sentOf('watch')).toEqual([{ type: 'watch', product_ids: [] }])

  store.watchProducts([1, 2])
  await nextTick()
  expect(latestSocket().sentOf('watch').slice(1)).toEqual([{ type: 'watch', product_ids: [1, 2] }])

  for (const id of [3, 4, 5]) {
    store.watchProducts([id])
    await nextTick()
  }
  store.unwatchProducts([1])
  await seconds(1)

  expect(latestSocket().sentOf('watch').slice(2)).toEqual([{ type: 'watch', product_ids: [2, 3, 4, 5] }])
})

test('a session that could not be restored is restored on connect', async () => {
  localStorage.setItem('forage.logged-in', '1')
  requests = stubNetwork((_, path) =>
    path.endsWith('/refresh') ? jsonResponse({ access_token: 'fresh' }) : jsonResponse(user()),
  )
  const { session } = await openLive()

  latestSocket().greet()

  await vi.waitFor(() => expect(session.user?.id).toBe(7))
  expect(requests.length).toBeGreaterThan(0)
})
