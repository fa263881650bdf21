import userEvent from '@testing-library/user-event'
import { screen } from '@testing-library/vue'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { clearToken } from '@/api/token'
import { useToasts } from '@/stores/toasts'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork, user } from '@/testing/api'
import { tokenFor } from '@/testing/token'
import RegisterPage from './RegisterPage.vue'

let pinia: Pinia
let requests: Request[]
let register: () => Response
let login: () => Response

beforeEach(() => {
  register = () => jsonResponse(user(), 201)
  login = () => jsonResponse({ access_token: tokenFor(7) })
  requests = stubNetwork((_, path) => {
    if (path === '/api/users/register') return register()
    if (path === '/api/users/login') return login()
    return path === '/api/auth/providers' ? jsonResponse([]) : jsonResponse(user())
  })
})
afterEach(() => {
  disposePinia(pinia)
  clearToken()
})

const sent = (path: string) => requests.filter(({ url }) => url.endsWith(path))
const field = (name: string) => screen.getByLabelText(name)

async function open(at = '/register') {
  const app = await renderInApp(RegisterPage, { at })
  pinia = app.pinia
  return app
}

async function fillIn({ email = 'ada@forage.example', username = 'ada', password = 'a walk in the woods' } = {}) {
  await userEvent.type(field('Email'), email)
  await userEvent.type(field('Username'), username)
  await userEvent.type(field('Password'), `${password}{Enter}`)
}

test('registering logs in, redirects and mentions the mail', async () => {
  const { router } = await open('/register?next=/checkout')

  await fillIn()

  await expect.poll(() => router.currentRoute.value.path).toBe('/checkout')
  expect(await sent('/register')[0]!.json()).toEqual({
    email: 'ada@forage.example',
    username: 'ada',
    password: 'a walk in the woods',
  })
  expect(useToasts(pinia).toasts[0]).toMatchObject({
    title: 'Welcome, ada!',
    text: expect.stringContaining('ada@forage.example'),
  })
})

test('when the login after registering fails, the login page opens', async () => {
  login = () => problemResponse('service-unavailable', 503)
  const { router } = await open('/register?next=/checkout')

  await fillIn()

  await expect.poll(() => router.currentRoute.value.fullPath).toBe('/login?next=/checkout')
  expect(sent('/register')).toHaveLength(1)
})

test.each([
  ['email', 'Email', 'There is already an account with this address.'],
  ['username', 'Username', 'This username is already taken.'],
])('a taken value shows at its field: %s', async (name, label, sentence) => {
  register = () => problemResponse('taken', 409, { field: name })
  await open()

  await fillIn()

  await expect.poll(() => document.activeElement).toBe(field(label))
  expect(field(label).getAttribute('aria-describedby')).not.toBeNull()
  expect(screen.getByText(new RegExp(sentence))).toBeInTheDocument()
  expect(field('Password')).toHaveValue('a walk in the woods')
})

test('refused values show at their fields, and the first gets the focus', async () => {
  register = () =>
    problemResponse('invalid-input', 422, {
      errors: {
        password: ['This password is too easy to guess: choose another.'],
        email: ['Not a valid email address.'],
      },
    })
  await open()

  await fillIn()

  await expect.poll(() => document.activeElement).toBe(field('Email'))
  expect(field('Email')).toHaveAccessibleDescription(/Enter a full email address/)
  expect(field('Password')).toHaveAccessibleDescription(/easy to guess/)
})

test.each([
  ['no address', { email: 'ada' }, 'Email', /Enter a full email address/],
  ['an address that no mail server takes', { email: 'a..b@forage.example' }, 'Email', /Enter a full email address/],
  ['a name with an invisible character', { username: 'ada\u200b' }, 'Username', /1 to 50 visible characters/],
  ['a short password', { password: '1234567' }, 'Password', /at least 8 characters/],
  ['a long password', { password: 'x'.repeat(129) }, 'Password', /at most 128 characters/],
  [
    'the address as the password',
    { password: 'ADA@forage.example' },
    'Password',
    /This is your address or your username/,
  ],
])('%s is marked without a request', async (_, fields, label, sentence) => {
  await open()

  await fillIn(fields)

  await expect.poll(() => document.activeElement).toBe(field(label))
  expect(field(label)).toHaveAccessibleDescription(sentence)
  expect(sent('/register')).toHaveLength(0)
})

test("a password's length is counted as the shop does, and its strength shows", async () => {
  await open()
  const password = field('Password')
  expect(password).toHaveAccessibleDescription(/At least 8 characters/)

  // A ligature counts as its letters, a surrogate pair as one.
  await userEvent.type(password, 'ﬀ🍄')
  expect(password).toHaveAccessibleDescription('5 more characters.')

  await userEvent.type(password, 'ssword')
  expect(password).toHaveAccessibleDescription(/^Long enough/)

  await userEvent.type(password, ' by the sea')
  expect(password).toHaveAccessibleDescription(/hard to guess/)
})

test('the password field asks password managers for a new one', async () => {
  await open()

  expect(field('Email')).toHaveAttribute('autocomplete', 'username')
  expect(field('Password')).toHaveAttribute('autocomplete', 'new-password')
})
