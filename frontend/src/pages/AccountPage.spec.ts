import userEvent from '@testing-library/user-event'
import { screen, within } from '@testing-library/vue'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Session } from '@/api/client'
import { clearToken, currentToken, setToken } from '@/api/token'
import { useSession } from '@/stores/session'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork, user } from '@/testing/api'
import { tokenFor } from '@/testing/token'
import AccountPage from './AccountPage.vue'

const FIREFOX = 'Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0'
const SAFARI =
  'Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1'

const device = (fields: Partial<Session>): Session => ({
  id: 1,
  user_agent: FIREFOX,
  client_address: '203.0.113.7',
  created_at: '2026-01-01T08:00:00Z',
  last_used_at: '2026-01-02T08:00:00Z',
  expires_at: '2026-02-01T08:00:00Z',
  current: false,
  ...fields,
})

let pinia: Pinia
let requests: Request[]
let devices: Session[]
let reply: (request: Request) => Response | Promise<Response> | undefined

beforeEach(() => {
  devices = [device({ id: 2, user_agent: SAFARI }), device({ id: 1, current: true })]
  reply = () => undefined
  requests = stubNetwork((request, path) => {
    const special = reply(request)
    if (special) return special
    if (path === '/api/users/me/sessions') return jsonResponse(devices)
    if (request.method === 'DELETE') {
      devices = devices.filter(({ id }) => !path.endsWith(`/${id}`))
      return new Response(null, { status: 204 })
    }
    if (path === '/api/users/me/password') return new Response(null, { status: 204 })
    return request.method === 'PATCH' ? request.json().then((body) => jsonResponse(user(body))) : jsonResponse(user())
  })
})
afterEach(() => {
  disposePinia(pinia)
  clearToken()
})

const sent = (method: string) => requests.filter((request) => request.method === method)

async function open() {
  const app = await renderInApp({ components: { AccountPage }, template: '<AccountPage />' }, { at: '/account' })
  pinia = app.pinia
  const session = useSession(pinia)
  setToken(tokenFor(7))
  await screen.findByRole('heading', { name: 'Account' })
  return { ...app, session }
}

test('sessions show their device, the current one first and without a button', async () => {
  await open()

  await screen.findByText(/Firefox on Windows/)
  const rows = screen.getAllByRole('listitem')
  expect(rows[0]).toHaveTextContent(/Firefox on Windows.*this one/)
  expect(rows[1]).toHaveTextContent(/Safari on iPhone.*203\.0\.113\.7/)
  expect(within(rows[0]!).queryByRole('button')).toBeNull()
})

test('a session without a user agent is an unknown device', async () => {
  devices = [device({ user_agent: null, client_address: null })]
  await open()

  expect(await screen.findByText('Unknown device')).toBeInTheDocument()
})

test('a session is ended after confirmation, disappears, and the focus is kept', async () => {
  await open()

  await userEvent.click(await screen.findByRole('button', { name: 'Log out there: Safari on iPhone' }))
  const dialog = await screen.findByRole('dialog', { name: 'Log out: Safari on iPhone?' })
  expect(sent('DELETE')).toHaveLength(0)
  await userEvent.click(within(dialog).getByRole('button', { name: 'Log out there' }))

  await expect.poll(() => screen.queryByText(/Safari on iPhone/)).toBeNull()
  expect(sent('DELETE').map(({ url }) => new URL(url).pathname)).toEqual(['/api/users/me/sessions/2'])
  await expect.poll(() => document.activeElement).toBe(screen.getByRole('heading', { name: 'Where you are logged in' }))
})

test('closing the dialog ends no session', async () => {
  await open()

  await userEvent.click(await screen.findByRole('button', { name: /Log out there/ }))
  await userEvent.click(within(await screen.findByRole('dialog')).getByRole('button', { name: 'Go back' }))

  await expect.poll(() => screen.queryByRole('dialog')).toBeNull()
  expect(sent('DELETE')).toHaveLength(0)
})

test('ending a session that is already over is no error', async () => {
  await open()
  await userEvent.click(await screen.findByRole('button', { name: /Log out there/ }))
  devices = devices.filter(({ current }) => current)
  reply = ({ method }) =>
    method === 'DELETE' ? problemResponse('session-not-found', 404, { session_id: 2 }) : undefined

  await userEvent.click(within(await screen.findByRole('dialog')).getByRole('button', { name: 'Log out there' }))

  await expect.poll(() => screen.queryByRole('dialog')).toBeNull()
  expect(screen.queryByText(/Safari on iPhone/)).toBeNull()
})

test('a failure to end a session shows in the open dialog', async () => {
  await open()
  reply = ({ method }) => (method === 'DELETE' ? problemResponse('service-unavailable', 503) : undefined)

  await userEvent.click(await screen.findByRole('button', { name: /Log out there/ }))
  await userEvent.click(within(await screen.findByRole('dialog')).getByRole('button', { name: 'Log out there' }))

  expect(await within(screen.getByRole('dialog')).findByText(/A part of the shop is down/)).toBeInTheDocument()
})

test('unreadable sessions can be retried and leave the rest of the page usable', async () => {
  reply = ({ url }) => (url.endsWith('/sessions') ? problemResponse('access-denied', 403) : undefined)
  await open()
  const again = await screen.findByRole('button', { name: 'Try again' })
  expect(screen.getByLabelText('Username')).toHaveValue('ada')

  reply = () => undefined
  await userEvent.click(again)

  expect(await screen.findByText(/Safari on iPhone/)).toBeInTheDocument()
})

test('a new username is saved and shown', async () => {
  const { session } = await open()

  await userEvent.clear(screen.getByLabelText('Username'))
  await userEvent.type(screen.getByLabelText('Username'), 'countess{Enter}')

  await expect.poll(() => session.user?.username).toBe('countess')
})

test('a new password ends all sessions and leads to the login page', async () => {
  const { router, session } = await open()

  await userEvent.type(screen.getByLabelText('Current password'), 'chanterelle')
  await userEvent.type(screen.getByLabelText('New password'), 'a walk by the sea{Enter}')

  await expect.poll(() => router.currentRoute.value.fullPath).toBe('/login?next=/account')
  expect(await sent('POST')[0]!.json()).toEqual({ old_password: 'chanterelle', password: 'a walk by the sea' })
  expect(currentToken()).toBeNull()
  expect(session.user).toBeNull()
  expect(session.ended).toBe(false)
})

test.each([
  ['name', { Username: 'countess' }],
  ['password', { 'Current password': 'chanterelle', 'New password': 'a walk by the sea' }],
])('a new %s answered after another user logged in does not affect that user', async (_, fields) => {
  const { session } = await open()
  let finish = () => {}
  reply = ({ method, url }) => {
    if (url.endsWith('/users/me') && method === 'GET') return jsonResponse(user({ id: 8, username: 'bo' }))
    if (url.endsWith('/sessions')) return undefined
    return new Promise((resolve) => (finish = () => resolve(jsonResponse(user({ username: 'countess' })))))
  }
  for (const [label, text] of Object.entries(fields)) await userEvent.type(screen.getByLabelText(label), text)
  await userEvent.keyboard('{Enter}')
  setToken(tokenFor(8))
  await expect.poll(() => session.user?.id).toBe(8)

  finish()
  await new Promise((done) => setTimeout(done))

  expect(session.user?.username).toBe('bo')
})

test('a wrong old password shows beside its field', async () => {
  await open()
  reply = ({ url }) =>
    url.endsWith('/password')
      ? problemResponse('invalid-input', 422, { errors: { old_password: ['This is not your password.'] } })
      : undefined

  await userEvent.type(screen.getByLabelText('Current password'), 'wrong')
  await userEvent.type(screen.getByLabelText('New password'), 'a walk by the sea{Enter}')

  await expect.poll(() => document.activeElement).toBe(screen.getByLabelText('Current password'))
  expect(screen.getByLabelText('Current password')).toHaveAccessibleDescription('This is not your password.')
})

test('the verification mail can be sent again', async () => {
  await open()
  reply = ({ url }) => (url.endsWith('/verification') ? jsonResponse({ detail: '' }, 202) : undefined)

  await userEvent.click(screen.getByRole('button', { name: 'Send the verification mail again' }))

  expect(await screen.findByText(/a mail is on its way/)).toBeInTheDocument()
})
