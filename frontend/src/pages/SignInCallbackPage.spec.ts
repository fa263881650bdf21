import userEvent from '@testing-library/user-event'
import { screen } from '@testing-library/vue'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { clearToken, currentToken } from '@/api/token'
import { useSession } from '@/stores/session'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork, user } from '@/testing/api'
import { tokenFor } from '@/testing/token'
import SignInCallbackPage from './SignInCallbackPage.vue'

const NEXT = 'forage.sign-in-next'

let pinia: Pinia
let refresh: () => Response
let fresh: string

beforeEach(() => {
  fresh = tokenFor(7)
  refresh = () => jsonResponse({ access_token: fresh })
  stubNetwork((_, path) => {
    if (path === '/api/auth/refresh') return refresh()
    return path === '/api/auth/providers' ? jsonResponse(['google']) : jsonResponse(user())
  })
})
afterEach(() => {
  disposePinia(pinia)
  clearToken()
  sessionStorage.clear()
})

async function comeBack(fragment: string) {
  const app = await renderInApp(SignInCallbackPage, { at: `/auth/callback#${fragment}` })
  pinia = app.pinia
  return { ...app, place: () => app.router.currentRoute.value.fullPath, session: useSession(pinia) }
}

test('one comes back, as who one is, to where one was', async () => {
  sessionStorage.setItem(NEXT, '/checkout')

  const { place, session } = await comeBack(`token=${tokenFor(7)}`)

  await expect.poll(place).toBe('/checkout')
  expect(session.user?.id).toBe(7)
  expect(sessionStorage.getItem(NEXT)).toBeNull()
})

test('a link with a token logs nobody in as somebody else: the cookie says who it is', async () => {
  const { place } = await comeBack(`token=${tokenFor(666)}`)

  await expect.poll(place).toBe('/')
  expect(currentToken()).toBe(fresh)
})

test('a link with a token, and no session, logs nobody in', async () => {
  refresh = () => problemResponse('invalid-session', 401)

  const { place, session } = await comeBack(`token=${tokenFor(666)}`)

  expect(await screen.findByRole('alert')).toHaveTextContent('You were not signed in')
  await expect.poll(place).toBe('/auth/callback')
  expect(session.user).toBeNull()
})

test.each(['https://evil.example', '//evil.example', '/\\evil.example'])(
  'nobody is led out of the shop, to %s',
  async (path) => {
    sessionStorage.setItem(NEXT, path)

    const { place } = await comeBack('token=x')

    await expect.poll(place).toBe('/')
  },
)

test.each(['token=x', 'error=sign-in-refused'])('the fragment is not left in the address: %s', async (fragment) => {
  refresh = () => problemResponse('service-unavailable', 503)

  const { place } = await comeBack(fragment)

  await expect.poll(place).toBe('/auth/callback')
})

test.each([
  ['sign-in-refused', 'You were not signed in'],
  ['unproven-address', 'Google does not vouch for your address'],
  ['account-disabled', 'This account is disabled'],
  ['sign-in-provider-away', 'Google does not answer'],
  ['<img src=x>', 'Something went wrong on the way back'],
])('a refusal is said in words, and other ways in are offered: %s', async (type, sentence) => {
  sessionStorage.setItem(NEXT, '/checkout')

  await comeBack(`error=${encodeURIComponent(type)}`)

  expect(screen.getByRole('alert')).toHaveTextContent(sentence)
  expect(screen.getByRole('link', { name: 'Log in another way' })).toHaveAttribute('href', '/login?next=/checkout')
  expect(await screen.findByRole('link', { name: 'Go on with Google' })).toBeInTheDocument()
})

test('a shop that is away just now is tried again', async () => {
  sessionStorage.setItem(NEXT, '/checkout')
  refresh = () => problemResponse('service-unavailable', 503)
  const { place } = await comeBack('token=x')
  const again = await screen.findByRole('button', { name: 'Try again' })

  refresh = () => jsonResponse({ access_token: fresh })
  await userEvent.click(again)

  await expect.poll(place).toBe('/checkout')
})
