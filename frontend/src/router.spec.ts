import { VueQueryPlugin } from '@tanstack/vue-query'
import { cleanup, render, screen } from '@testing-library/vue'
import { createPinia, disposePinia, type Pinia } from 'pinia'
import { createMemoryHistory, createRouter, type RouteRecordRaw } from 'vue-router'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { clearToken, setToken } from './api/token'
import SessionGate from './components/SessionGate.vue'
import { useSessionEnd } from './composables/useSessionEnd'
import { i18n } from './i18n'
import { guard, router as appRouter } from './router'
import { useSession } from './stores/session'
import { useToasts } from './stores/toasts'
import { jsonResponse, problemResponse, stubNetwork, user } from './testing/api'
import { tokenFor } from './testing/token'

let pinia: Pinia
let isDown: boolean
let cookieOf: number | null

beforeEach(() => {
  isDown = false
  cookieOf = 7
  stubNetwork((request, path) => {
    if (isDown) return problemResponse('service-unavailable', 503)
    if (path === '/api/auth/refresh')
      return cookieOf ? jsonResponse({ access_token: tokenFor(cookieOf) }) : problemResponse('invalid-session', 401)
    const { sub } = JSON.parse(atob(request.headers.get('Authorization')!.split('.')[1]!))
    return jsonResponse(user({ id: Number(sub) }))
  })
})
afterEach(() => {
  vi.useRealTimers()
  cleanup()
  disposePinia(pinia)
  clearToken()
})

/** The app's routes. Each page shows only its name and user. */
const bare = (record: RouteRecordRaw): RouteRecordRaw => ({
  path: record.path,
  name: record.name,
  meta: record.meta,
  component: record.children
    ? { template: '<RouterView />' }
    : {
        setup: () => ({ session: useSession() }),
        template: `<h1>${String(record.name)} of {{ session.user?.id ?? 'nobody' }}</h1>`,
      },
  children: record.children?.map(bare) ?? [],
})

async function visit(path: string) {
  const history = createMemoryHistory()
  history.replace(path)
  const router = createRouter({ history, routes: appRouter.options.routes.map(bare) })
  router.beforeEach(guard)
  pinia = createPinia()
  const App = { components: { SessionGate }, setup: () => useSessionEnd(), template: '<SessionGate />' }
  render(App, { global: { plugins: [pinia, [VueQueryPlugin, {}], i18n, router] } })
  await router.isReady()
  return { router, session: useSession(pinia), place: () => router.currentRoute.value.fullPath }
}

const logInBefore = (id = 7) => localStorage.setItem('forage.logged-in', String(id))

test('a guest is sent to the login page with the way back', async () => {
  const { place } = await visit('/orders?page=2')

  expect(place()).toBe('/login?next=/orders?page=2')
})

test('a returning user sees the page', async () => {
  logInBefore()

  await visit('/orders')

  expect(await screen.findByText('orders of 7')).toBeInTheDocument()
})

test('a skeleton shows until the user is known', async () => {
  logInBefore()

  const visiting = visit('/orders')

  expect(screen.getByRole('status')).toHaveTextContent('Loading…')
  await visiting
  expect(await screen.findByText('orders of 7')).toBeInTheDocument()
  expect(screen.queryByRole('status')).toBeNull()
})

test('during an outage the page waits, says why and opens by itself', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  logInBefore()
  isDown = true
  const { place } = await visit('/orders?page=2')
  expect(place()).toBe('/orders?page=2')
  expect(screen.getByRole('alert')).toHaveTextContent('A part of the shop is down')

  isDown = false
  await vi.advanceTimersByTimeAsync(5000)

  expect(screen.getByText('orders of 7')).toBeInTheDocument()
  expect(place()).toBe('/orders?page=2')
})

test('a user who is logged out after an outage is sent to the login page', async () => {
  logInBefore()
  isDown = true
  const { place, session } = await visit('/orders')

  isDown = false
  cookieOf = null
  await session.restore()

  await expect.poll(place).toBe('/login?next=/orders')
})

test('a user who is no admin after an outage sees no back office', async () => {
  logInBefore()
  isDown = true
  const { router, session } = await visit('/admin/orders')
  const mounted = vi.fn()
  router.getRoutes().find(({ name }) => name === 'admin-orders')!.components!.default = { mounted, template: '<p />' }

  isDown = false
  await session.restore()

  await expect.poll(() => router.currentRoute.value.name).toBe('not-found')
  expect(mounted).not.toHaveBeenCalled()
})

test('a session that ends shows one toast and leads to the login page', async () => {
  logInBefore()
  const { place } = await visit('/orders')
  await screen.findByText('orders of 7')

  clearToken()

  await expect.poll(place).toBe('/login?next=/orders')
  expect(useToasts(pinia).toasts.map(({ title }) => title)).toEqual([expect.stringContaining('Your session has ended')])
})

test('logging out leads to the chosen page', async () => {
  logInBefore()
  const { place, router, session } = await visit('/orders')
  await screen.findByText('orders of 7')

  session.clear()
  await router.push('/')

  expect(await screen.findByText('shop of nobody')).toBeInTheDocument()
  expect(place()).toBe('/')
  expect(useToasts(pinia).toasts).toEqual([])
})

test('when another user logs in, the page is rendered for that user', async () => {
  logInBefore()
  await visit('/orders')
  const theirs = await screen.findByText('orders of 7')

  setToken(tokenFor(8))

  expect(await screen.findByText('orders of 8')).not.toBe(theirs)
  expect(theirs).not.toBeInTheDocument()
})

test('a public page is rendered again after a logout', async () => {
  logInBefore()
  const { session } = await visit('/')
  await session.restore()
  const theirs = await screen.findByText('shop of 7')

  clearToken()

  expect(await screen.findByText('shop of nobody')).not.toBe(theirs)
})

test.each(['reset-password', 'verify-email', 'sign-in-callback'])(
  "the page %s keeps its link's data when a session ends",
  async (name) => {
    logInBefore()
    const { session } = await visit(appRouter.resolve({ name }).path)
    await session.restore()
    const page = await screen.findByText(`${name} of 7`)

    clearToken()

    expect(await screen.findByText(`${name} of nobody`)).toBe(page)
  },
)

test.each([
  ['/login?next=/orders', '/orders'],
  ['/register', '/'],
  ['/login?next=//evil.example', '/'],
])('a logged-in user is redirected from %s', async (path, next) => {
  logInBefore()

  const { place } = await visit(path)

  expect(place()).toBe(next)
})

test('the login page opens while the user is still unknown', async () => {
  logInBefore()
  isDown = true

  await visit('/login')

  expect(screen.getByText('login of nobody')).toBeInTheDocument()
})
