import userEvent from '@testing-library/user-event'
import { fireEvent, screen } from '@testing-library/vue'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { clearToken, setToken } from '@/api/token'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork, user } from '@/testing/api'
import { tokenFor } from '@/testing/token'
import LoginPage from './LoginPage.vue'

let pinia: Pinia
let requests: Request[]
let login: () => Response | Promise<Response>
let providers: string[]

beforeEach(() => {
  providers = []
  login = () => jsonResponse({ access_token: tokenFor(7) })
  requests = stubNetwork((_, path) => {
    if (path === '/api/users/login') return login()
    return path === '/api/auth/providers' ? jsonResponse(providers) : jsonResponse(user())
  })
})
afterEach(() => {
  disposePinia(pinia)
  clearToken()
  sessionStorage.clear()
})

const logins = () => requests.filter(({ url }) => url.endsWith('/login'))
const email = () => screen.getByLabelText('Email')
const password = () => screen.getByLabelText('Password')
const button = () => screen.getByRole('button', { name: 'Log in' })

async function open(at = '/login') {
  const app = await renderInApp(LoginPage, { at })
  pinia = app.pinia
  return app
}

async function fillIn(words = 'chanterelle{Enter}') {
  await userEvent.type(email(), 'ada@forage.example')
  await userEvent.type(password(), words)
}

test('logging in with Enter leads to the requested page', async () => {
  const { router } = await open('/login?next=/orders%3Fpage%3D2')

  await fillIn()

  await expect.poll(() => router.currentRoute.value.fullPath).toBe('/orders?page=2')
  expect(await logins()[0]!.json()).toEqual({ email: 'ada@forage.example', password: 'chanterelle' })
})

test('a foreign address in next is ignored', async () => {
  const { router } = await open('/login?next=//evil.example')

  await fillIn()

  await expect.poll(() => router.currentRoute.value.fullPath).toBe('/')
})

test('a logged-in user is redirected at once', async () => {
  const { router } = await open('/login?next=/orders')

  setToken(tokenFor(7))

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders')
})

test('a wrong password shows at its field, which gets the focus, and the input stays', async () => {
  login = () => problemResponse('invalid-credentials', 401, {}, { 'WWW-Authenticate': 'Bearer' })
  await open()

  await fillIn('wrong{Enter}')

  await expect.poll(() => document.activeElement).toBe(password())
  expect(password()).toHaveAccessibleDescription('The address or the password is wrong.')
  expect(password()).toHaveValue('wrong')
  expect(email()).toHaveValue('ada@forage.example')
})

test('too many failures show how long to wait', async () => {
  login = () => problemResponse('too-many-failures', 429, {}, { 'Retry-After': '42' })
  await open()

  await fillIn()

  expect(await screen.findByText(/Try again in 42 seconds/)).toBeInTheDocument()
})

test('empty fields are marked without a request, and the first gets the focus', async () => {
  await open()

  await userEvent.click(button())

  await expect.poll(() => document.activeElement).toBe(email())
  expect(email()).toHaveAccessibleDescription('This is required.')
  expect(logins()).toHaveLength(0)
})

test('a double click and Enter log in once', async () => {
  let finish: (answer: Response) => void = () => {}
  login = () => new Promise((resolve) => (finish = resolve))
  const { router } = await open()
  await fillIn('chanterelle')

  await Promise.all([fireEvent.submit(button()), fireEvent.submit(button())])
  await userEvent.dblClick(button())
  await userEvent.type(password(), '{Enter}')
  finish(jsonResponse({ access_token: tokenFor(7) }))

  await expect.poll(() => router.currentRoute.value.path).toBe('/')
  expect(logins()).toHaveLength(1)
})

test('the password can be shown', async () => {
  await open()

  await userEvent.click(screen.getByRole('button', { name: 'Show password' }))

  expect(password()).toHaveAttribute('type', 'text')
  await userEvent.click(screen.getByRole('button', { name: 'Hide password' }))
  expect(password()).toHaveAttribute('type', 'password')
})

test('the fields have autocomplete hints for password managers', async () => {
  await open()

  expect(email()).toHaveAttribute('autocomplete', 'username')
  expect(password()).toHaveAttribute('autocomplete', 'current-password')
})

test('Google is offered where it is configured, and the requested page is remembered', async () => {
  providers = ['google']
  await open('/login?next=/checkout')

  const google = await screen.findByRole('link', { name: 'Continue with Google' })
  google.addEventListener('click', (event) => event.preventDefault())
  await userEvent.click(google)

  expect(google).toHaveAttribute('href', '/api/auth/google')
  expect(sessionStorage.getItem('forage.sign-in-next')).toBe('/checkout')
})

test('Google is not offered where it is not configured', async () => {
  await open()

  await expect.poll(() => screen.queryByText('or')).toBeNull()
  expect(screen.queryByRole('link', { name: /Google/ })).toBeNull()
})

test('the link to registration passes the requested page on', async () => {
  await open('/login?next=/checkout')

  expect(screen.getByRole('link', { name: 'Create account' })).toHaveAttribute('href', '/register?next=/checkout')
})
