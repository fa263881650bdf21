import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { jsonResponse, problemResponse, stubNetwork } from '@/testing/api'
import { stubChannels, stubLocks } from '@/testing/tabs'
import { tokenFor } from '@/testing/token'

/** From services/users_models.py. */
const SERVER_GRACE_SECONDS = 10

type Tab = typeof import('./token')

let closeTabs: () => void
/** The token that the gateway accepts. */
let good: string
let requests: Request[]
let refreshed: () => Response | Promise<Response>

const stale = () =>
  problemResponse(
    'unauthenticated',
    401,
    {},
    { 'WWW-Authenticate': 'Bearer error="invalid_token", error_description="The token has expired."' },
  )
const refreshes = () => requests.filter(({ url }) => url.endsWith('/auth/refresh'))
const ask = (tab: Tab, path = '/api/orders') => tab.fetchWithToken(new Request(path))

/** Another tab of the browser: the module is imported again. */
async function openTab(): Promise<Tab> {
  vi.resetModules()
  return import('./token')
}

async function waitForToken(tab: Tab, token: string | null) {
  await expect.poll(() => tab.currentToken()).toBe(token)
}

beforeEach(() => {
  closeTabs = stubChannels()
  good = tokenFor(7)
  refreshed = () => jsonResponse({ access_token: good, token_type: 'bearer', expires_in: 900 })
  requests = stubNetwork((request, path) => {
    if (path === '/api/auth/refresh') return refreshed()
    return request.headers.get('Authorization') === `Bearer ${good}` ? jsonResponse({}) : stale()
  })
})
afterEach(() => closeTabs())

test('concurrent requests with an expired token share one refresh, and each is retried once', async () => {
  const tab = await openTab()
  tab.setToken(tokenFor(7))

  const answers = await Promise.all(
    ['/api/orders', '/api/notifications', '/api/users/me'].map((path) => ask(tab, path)),
  )

  expect(answers.map(({ status }) => status)).toEqual([200, 200, 200])
  expect(refreshes()).toHaveLength(1)
  expect(requests).toHaveLength(7)
})

test('two tabs with an expired token share one refresh', async () => {
  stubLocks()
  const [here, there] = [await openTab(), await openTab()]
  const old = tokenFor(7)
  here.setToken(old)
  await waitForToken(there, old)

  const answers = await Promise.all([ask(here), ask(there)])

  expect(answers.map(({ status }) => status)).toEqual([200, 200])
  expect(refreshes()).toHaveLength(1)
})

test('a token from another tab is used without a refresh', async () => {
  const [here, there] = [await openTab(), await openTab()]

  there.setToken(good)
  await waitForToken(here, good)

  expect((await ask(here)).status).toBe(200)
  expect(await here.refreshToken(null)).toBe(true)
  expect(refreshes()).toHaveLength(0)
})

test('a request that is refused with the new token too is not retried again', async () => {
  const tab = await openTab()
  tab.setToken(tokenFor(7))
  refreshed = () => jsonResponse({ access_token: tokenFor(7) })

  expect((await ask(tab)).status).toBe(401)
  expect(refreshes()).toHaveLength(1)
})

test('a wrong password causes no refresh', async () => {
  const tab = await openTab()
  tab.setToken(good)
  requests = stubNetwork(() => problemResponse('invalid-credentials', 401, {}, { 'WWW-Authenticate': 'Bearer' }))

  expect((await ask(tab, '/api/users/login')).status).toBe(401)
  expect(requests).toHaveLength(1)
})

test('the retry sends the body again', async () => {
  const tab = await openTab()
  tab.setToken(tokenFor(7))

  await tab.fetchWithToken(new Request('/api/orders', { method: 'POST', body: 'two chanterelles' }))

  expect(await requests.at(-1)!.text()).toBe('two chanterelles')
})

test.each([
  [
    'no answer',
    () => {
      throw new TypeError('Failed to fetch')
    },
    'network',
  ],
  [
    'an answer that takes too long',
    () => {
      throw new DOMException('', 'TimeoutError')
    },
    'network',
  ],
  ['a shop that is down', () => problemResponse('service-unavailable', 503), 'service-unavailable'],
  ['too many requests', () => problemResponse('rate-limited', 429), 'rate-limited'],
  ['a captive portal', () => new Response('<html>', { status: 200 }), 'unreadable-answer'],
  ['a proxy that wants a login', () => new Response('<html>', { status: 401 }), 'unreadable-answer'],
])('%s does not end the session', async (_, reply, type) => {
  const tab = await openTab()
  const old = tokenFor(7)
  tab.setToken(old)
  const listener = vi.fn()
  tab.onTokenChange(listener)
  refreshed = reply

  await expect(ask(tab)).rejects.toMatchObject({ type })

  expect(tab.currentToken()).toBe(old)
  expect(listener).not.toHaveBeenCalled()
})

test('requests that wait for one refresh share its failure', async () => {
  const tab = await openTab()
  tab.setToken(tokenFor(7))
  refreshed = () => problemResponse('service-unavailable', 503)

  const answers = await Promise.allSettled([ask(tab), ask(tab), ask(tab)])

  expect(answers.map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected'])
  expect(refreshes()).toHaveLength(1)
})

test('a refresh without an answer is repeated within the grace period of the old cookie', async () => {
  const tab = await openTab()
  tab.setToken(tokenFor(7))
  const timeout = vi.spyOn(AbortSignal, 'timeout')
  const succeed = refreshed
  refreshed = () => {
    refreshed = succeed
    throw new DOMException('', 'TimeoutError')
  }

  expect((await ask(tab)).status).toBe(200)

  expect(refreshes()).toHaveLength(2)
  expect(Math.min(...timeout.mock.calls.flat())).toBeLessThan(SERVER_GRACE_SECONDS * 1000)
})

test('the next request after a failed refresh refreshes again', async () => {
  const tab = await openTab()
  tab.setToken(tokenFor(7))
  const succeed = refreshed
  refreshed = () => problemResponse('service-unavailable', 503)
  await expect(ask(tab)).rejects.toThrow()

  refreshed = succeed

  expect((await ask(tab)).status).toBe(200)
})

test('a session that ends in one tab ends in all tabs', async () => {
  const [here, there] = [await openTab(), await openTab()]
  const old = tokenFor(7)
  here.setToken(old)
  await waitForToken(there, old)
  const listener = vi.fn()
  there.onTokenChange(listener)
  refreshed = () => problemResponse('invalid-session', 401)

  expect((await ask(here)).status).toBe(401)

  expect(here.currentToken()).toBeNull()
  await waitForToken(there, null)
  expect(listener).toHaveBeenCalledTimes(1)
})

test('a request of one user is not retried as another', async () => {
  const tab = await openTab()
  tab.setToken(tokenFor(7))
  good = tokenFor(8)

  const { status } = await tab.fetchWithToken(new Request('/api/orders', { method: 'POST', body: '{}' }))

  expect(status).toBe(401)
  expect(tab.tokenUserId()).toBe('8')
  expect(requests.filter(({ url }) => url.endsWith('/orders'))).toHaveLength(1)
})

test('logging out during a refresh keeps the user logged out', async () => {
  const tab = await openTab()
  const old = tokenFor(7)
  tab.setToken(old)
  let finish: (answer: Response) => void = () => {}
  refreshed = () => new Promise((resolve) => (finish = resolve))
  const refresh = tab.refreshToken(old)
  await expect.poll(() => refreshes().length).toBe(1)

  const leaving = tab.withSessionLock(async () => tab.clearToken())
  finish(jsonResponse({ access_token: good }))
  await Promise.all([refresh, leaving])

  expect(tab.currentToken()).toBeNull()
})

test('without Web Locks, a logout in another tab wins over a running refresh', async () => {
  const tab = await openTab()
  const old = tokenFor(7)
  tab.setToken(old)
  let finish: (answer: Response) => void = () => {}
  refreshed = () => new Promise((resolve) => (finish = resolve))
  const refresh = tab.refreshToken(old)
  await expect.poll(() => refreshes().length).toBe(1)
  ;(await openTab()).clearToken()
  await waitForToken(tab, null)

  finish(jsonResponse({ access_token: good }))

  expect(await refresh).toBe(false)
  expect(tab.currentToken()).toBeNull()
})

test('a wrong clock causes no refresh', async () => {
  vi.setSystemTime('2099-01-01')
  const tab = await openTab()
  tab.setToken(good)

  expect((await ask(tab)).status).toBe(200)
  expect(refreshes()).toHaveLength(0)
  vi.useRealTimers()
})

test('an aborted request without a token is not a network problem', async () => {
  const tab = await openTab()
  requests = stubNetwork(() => {
    throw new DOMException('', 'AbortError')
  })

  await expect(ask(tab)).rejects.toMatchObject({ name: 'AbortError' })
})

test('a request without an answer times out and releases the lock for other tabs', async () => {
  stubLocks()
  const [here, there] = [await openTab(), await openTab()]
  const late = new AbortController()
  vi.spyOn(AbortSignal, 'timeout').mockReturnValue(late.signal)
  const stalled = vi.fn(
    (request: Request, { signal } = request) =>
      new Promise<never>((_, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason))
      }),
  )
  vi.stubGlobal('fetch', stalled)
  const loggingIn = here.withSessionLock(() => ask(here, '/api/users/login'))
  const elsewhere = there.withSessionLock(async () => 'done')
  await expect.poll(() => stalled.mock.calls).toHaveLength(1)

  late.abort(new DOMException('', 'TimeoutError'))

  await expect(loggingIn).rejects.toMatchObject({ type: 'network' })
  expect(await elsewhere).toBe('done')
})
