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

async function openCallback(fragment: string) {
  const app = await renderInApp(SignInCallbackPage, { at: `/auth/callback#${fragment}` })
  pinia = app.pinia
  return { ...app, place: () => app.router.currentRoute.value.fullPath, session: useSession(pinia) }
}

test('after signing in the user returns to the remembered page', async () => {
  sessionStorage.setItem(NEXT, '/checkout')

  const { place, session } = await openCallback(`token=${tokenFor(7)}`)

  await expect.poll(place).toBe('/checkout')
  expect(session.user?.id).toBe(7)
  expect(sessionStorage.getItem(NEXT)).toBeNull()
})

test('the token in a link is ignored: the cookie decides who is logged in', async () => {
  const { place } = await openCallback(`token=${tokenFor(666)}`)

  await expect.poll(place).toBe('/')
  expect(currentToken()).toBe(fresh)
})

test('a link with a token and no session logs in no user', async () => {
  refresh = () => problemResponse('invalid-session', 401)

  const { place, session } = await openCallback(`token=${tokenFor(666)}`)

  expect(await screen.findByRole('alert')).toHaveTextContent('You were not signed in')
  await expect.poll(place).toBe('/auth/callback')
  expect(session.user).toBeNull()
})

test.each(['https://evil.example', '//evil.example', '/\\evil.example'])(
  'a remembered foreign address is ignored: %s',
  async (path) => {
    sessionStorage.setItem(NEXT, path)

    const { place } = await openCallback('token=x')

    await expect.poll(place).toBe('/')
  },
)

test.each(['token=x', 'error=sign-in-refused'])('the fragment is removed from the address: %s', async (fragment) => {
  refresh = () => problemResponse('service-unavailable', 503)

  const { place } = await openCallback(fragment)

  await expect.poll(place).toBe('/auth/callback')
})

test.each([
  ['sign-in-refused', 'You were not signed in'],
  ['unproven-address', 'Google has not verified your address'],
  ['account-disabled', 'This account is disabled'],
  ['sign-in-provider-away', 'Google is not answering'],
  ['<img src=x>', 'Something went wrong on the way back'],
])('an error shows a message and other ways to log in: %s', async (type, sentence) => {
  sessionStorage.setItem(NEXT, '/checkout')

  await openCallback(`error=${encodeURIComponent(type)}`)

  expect(screen.getByRole('alert')).toHaveTextContent(sentence)
  expect(screen.getByRole('link', { name: 'Log in another way' })).toHaveAttribute('href', '/login?next=/checkout')
  expect(await screen.findByRole('link', { name: 'Continue with Google' })).toBeInTheDocument()
})

test('an unreachable shop can be retried', async () => {
  sessionStorage.setItem(NEXT, '/checkout')
  refresh = () => problemResponse('service-unavailable', 503)
  const { place } = await openCallback('token=x')
  const again = await screen.findByRole('button', { name: 'Try again' })

  refresh = () => jsonResponse({ access_token: fresh })
  await userEvent.click(again)

  await expect.poll(place).toBe('/checkout')
})
