import { QueryClient } from '@tanstack/vue-query'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { clearToken, currentToken, setToken } from '@/api/token'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork, user } from '@/testing/api'
import { tokenFor } from '@/testing/token'
import { useSession } from './session'

const USER_ID_KEY = 'forage.logged-in'

let pinia: Pinia
let queries: QueryClient
let requests: Request[]
/** The user of the refresh cookie. */
let cookieOf: number | null
let isDown: boolean
let me: (id: number) => Response | Promise<Response>

const idIn = (request: Request) => JSON.parse(atob(request.headers.get('Authorization')!.split('.')[1]!)).sub as string
const asked = (path: string) => requests.filter(({ url }) => url.endsWith(path)).length

beforeEach(() => {
  cookieOf = null
  isDown = false
  me = (id) => jsonResponse(user({ id }))
  requests = stubNetwork(async (request, path) => {
    if (isDown) return problemResponse('service-unavailable', 503)
    if (path === '/api/users/login')
      return jsonResponse({ access_token: tokenFor((cookieOf = Number((await request.json()).email))) })
    if (path === '/api/auth/logout') return new Response(null, { status: 204 })
    if (path === '/api/auth/refresh')
      return cookieOf ? jsonResponse({ access_token: tokenFor(cookieOf) }) : problemResponse('invalid-session', 401)
    return me(Number(idIn(request)))
  })
})
afterEach(() => {
  disposePinia(pinia)
  clearToken()
})

async function openSession() {
  const app = await renderInApp({ template: '<div />' })
  pinia = app.pinia
  queries = app.queryClient
  return useSession(pinia)
}

async function openSessionOf(id: number) {
  localStorage.setItem(USER_ID_KEY, String(id))
  cookieOf = id
  const session = await openSession()
  await session.restore()
  return session
}

test('a guest causes no request', async () => {
  const session = await openSession()

  await session.restore()

  expect(requests).toEqual([])
  expect(session.user).toBeNull()
  expect(session.failure).toBeNull()
})

test('concurrent calls restore the session with one request', async () => {
  localStorage.setItem(USER_ID_KEY, '7')
  cookieOf = 7
  const session = await openSession()

  await Promise.all([session.restore(), session.restore()])
  await session.restore()

  expect(session.user?.id).toBe(7)
  expect(asked('/auth/refresh')).toBe(1)
  expect(asked('/users/me')).toBe(1)
})

test('an expired cookie ends the session once', async () => {
  localStorage.setItem(USER_ID_KEY, '7')
  const session = await openSession()

  await session.restore()
  await session.restore()

  expect(session.user).toBeNull()
  expect(session.ended).toBe(true)
  expect(localStorage.getItem(USER_ID_KEY)).toBeNull()
  expect(asked('/auth/refresh')).toBe(1)
})

test('an expired remembered session keeps the cached data of the guest', async () => {
  localStorage.setItem(USER_ID_KEY, '7')
  const session = await openSession()
  queries.setQueryData(['product', 1], 'seen')
  const { visit } = session

  await session.restore()

  expect(session.knownUserId).toBeNull()
  expect(session.visit).toBe(visit)
  expect(queries.getQueryData(['product', 1])).toBe('seen')
})

test('an outage does not end the session, and restoring is retried', async () => {
  localStorage.setItem(USER_ID_KEY, '7')
  cookieOf = 7
  isDown = true
  const session = await openSession()
  await session.restore()
  expect(session.failure?.type).toBe('service-unavailable')
  expect(session.knownUserId).toBe('7')

  isDown = false
  await session.restore()

  expect(session.user?.id).toBe(7)
  expect(session.failure).toBeNull()
})

test('a login during a restore wins', async () => {
  localStorage.setItem(USER_ID_KEY, '7')
  cookieOf = 7
  const session = await openSession()

  const restoring = session.restore()
  await session.logIn('8', 'secret')
  await restoring

  expect(session.user?.id).toBe(8)
  expect(localStorage.getItem(USER_ID_KEY)).toBe('8')
})

test('a late account response of a former user is ignored', async () => {
  let finish = () => {}
  me = (id) =>
    id === 7
      ? new Promise((resolve) => (finish = () => resolve(jsonResponse(user({ id })))))
      : jsonResponse(user({ id }))
  const session = await openSession()
  setToken(tokenFor(7))
  await expect.poll(() => asked('/users/me')).toBe(1)

  setToken(tokenFor(8))
  finish()

  await expect.poll(() => session.user?.id).toBe(8)
})

test('a login without an account response is completed later', async () => {
  me = () => problemResponse('timeout', 504)
  const session = await openSession()
  await expect(session.logIn('7', 'secret')).rejects.toMatchObject({ type: 'timeout' })

  me = (id) => jsonResponse(user({ id }))
  await session.restore()

  expect(session.user?.id).toBe(7)
  expect(asked('/users/login')).toBe(1)
})

test('data of the former user is cleared when another logs in', async () => {
  const session = await openSessionOf(7)
  queries.setQueryData(['orders'], ['theirs'])
  const { visit } = session

  setToken(tokenFor(8))

  expect(session.user).toBeNull()
  expect(queries.getQueryData(['orders'])).toBeUndefined()
  expect(session.visit).not.toBe(visit)
  await expect.poll(() => session.user?.id).toBe(8)
})

test('a guest who logs in keeps the cached data', async () => {
  const session = await openSession()
  queries.setQueryData(['product', 1], 'seen')
  const { visit } = session

  await session.logIn('7', 'secret')

  expect(session.visit).toBe(visit)
  expect(queries.getQueryData(['product', 1])).toBe('seen')
})

test('a new token of the same user changes nothing', async () => {
  const session = await openSessionOf(7)
  queries.setQueryData(['orders'], ['mine'])

  setToken(tokenFor(7))

  expect(session.user?.id).toBe(7)
  expect(queries.getQueryData(['orders'])).toEqual(['mine'])
  expect(asked('/users/me')).toBe(1)
})

test('logging out ends the session without a message', async () => {
  const session = await openSessionOf(7)

  await session.logOut()

  expect(session.user).toBeNull()
  expect(session.ended).toBe(false)
  expect(currentToken()).toBeNull()
  expect(localStorage.getItem(USER_ID_KEY)).toBeNull()
})

test('a failed logout keeps the user logged in', async () => {
  const session = await openSessionOf(7)
  isDown = true

  await expect(session.logOut()).rejects.toMatchObject({ type: 'service-unavailable' })

  expect(session.user?.id).toBe(7)
  expect(currentToken()).not.toBeNull()
})

test('a logout in another tab ends the session here', async () => {
  const session = await openSessionOf(7)

  const elsewhere = new BroadcastChannel('forage.session')
  elsewhere.postMessage({ token: null })
  elsewhere.close()

  await expect.poll(() => session.user).toBeNull()
  expect(session.ended).toBe(true)
  expect(session.knownUserId).toBeNull()
})
