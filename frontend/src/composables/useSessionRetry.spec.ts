import { disposePinia } from 'pinia'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { clearToken } from '@/api/token'
import { useSession } from '@/stores/session'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork, user } from '@/testing/api'
import { tokenFor } from '@/testing/token'
import { useSessionRetry } from './useSessionRetry'

const Gate = { setup: () => useSessionRetry(), template: '<p />' }
const App = { components: { Gate }, props: { isOpen: Boolean }, template: '<Gate v-if="isOpen" />' }

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }))
afterEach(() => {
  vi.useRealTimers()
  clearToken()
})

test('a component mounted during an outage retries too', async () => {
  localStorage.setItem('forage.logged-in', '7')
  stubNetwork(() => problemResponse('service-unavailable', 503))
  const { pinia, rerender } = await renderInApp(App, { props: { isOpen: false } })
  const session = useSession(pinia)
  await session.restore()
  stubNetwork((_, path) => jsonResponse(path === '/api/auth/refresh' ? { access_token: tokenFor(7) } : user()))

  await rerender({ isOpen: true })
  await vi.advanceTimersByTimeAsync(2000)

  expect(session.user?.id).toBe(7)
  disposePinia(pinia)
})
