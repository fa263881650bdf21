import userEvent from '@testing-library/user-event'
import { screen } from '@testing-library/vue'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Component } from 'vue'
import { clearToken, setToken } from '@/api/token'
import { useSession } from '@/stores/session'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork, user } from '@/testing/api'
import { tokenFor } from '@/testing/token'
import ResetPasswordPage from './ResetPasswordPage.vue'
import VerifyEmailPage from './VerifyEmailPage.vue'

let pinia: Pinia
let requests: Request[]
let reply: (path: string) => Response

beforeEach(() => {
  reply = () => new Response(null, { status: 204 })
  requests = stubNetwork((_, path) => reply(path))
})
afterEach(() => {
  disposePinia(pinia)
  clearToken()
})

async function follow(page: Component, link: string) {
  const app = await renderInApp(page, { at: link })
  pinia = app.pinia
  return { ...app, place: () => app.router.currentRoute.value.fullPath }
}

test('an address is verified at once by one request, and the token leaves the address bar', async () => {
  const { place } = await follow(VerifyEmailPage, '/verify-email#token=secret')

  expect(await screen.findByText(/Your address is verified/)).toBeInTheDocument()
  expect(requests).toHaveLength(1)
  expect(await requests[0]!.json()).toEqual({ token: 'secret' })
  await expect.poll(place).toBe('/verify-email')
})

test('a second link followed on the same page is used too', async () => {
  reply = () => problemResponse('invalid-token', 400)
  const { router, place } = await follow(VerifyEmailPage, '/verify-email#token=old')
  await screen.findByText(/used already or is too old/)

  reply = () => new Response(null, { status: 204 })
  await router.push('/verify-email#token=new')

  expect(await screen.findByText(/Your address is verified/)).toBeInTheDocument()
  expect(await requests[1]!.json()).toEqual({ token: 'new' })
  await expect.poll(place).toBe('/verify-email')
})

test('a failed verification can be retried with the same token', async () => {
  reply = () => problemResponse('service-unavailable', 503)
  await follow(VerifyEmailPage, '/verify-email#token=secret')
  const again = await screen.findByRole('button', { name: 'Try again' })

  reply = () => new Response(null, { status: 204 })
  await userEvent.click(again)

  expect(await screen.findByText(/Your address is verified/)).toBeInTheDocument()
  expect(await requests[1]!.json()).toEqual({ token: 'secret' })
})

test('without a token no request is sent, and the page explains what is needed', async () => {
  await follow(VerifyEmailPage, '/verify-email')

  expect(screen.getByText('For this you need the link from our mail.')).toBeInTheDocument()
  expect(requests).toHaveLength(0)
})

test("a new password is set with the link's token and leads to the login page", async () => {
  const { place } = await follow(ResetPasswordPage, '/reset-password#token=secret')
  await expect.poll(place).toBe('/reset-password')

  await userEvent.type(screen.getByLabelText('New password'), 'a walk by the sea{Enter}')

  await expect.poll(place).toBe('/login')
  expect(await requests[0]!.json()).toEqual({ token: 'secret', password: 'a walk by the sea' })
})

test.each([
  ['/reset-password', ResetPasswordPage],
  ['/verify-email', VerifyEmailPage],
])('skipping to the content is not taken for a link on %s', async (path, page) => {
  const { router, place } = await follow(page, `${path}#token=secret`)
  await expect.poll(place).toBe(path)

  await router.push(`${path}#main`)

  expect(place()).toBe(`${path}#main`)
  expect(screen.queryByText(/you need the link from our mail/)).toBeNull()
})

test.each([
  ['the session of this account has ended', 7, null],
  ['the session of another account goes on', 8, 8],
])('after a new password the session here is checked: %s', async (_, id, left) => {
  reply = (path) => {
    if (path === '/api/auth/refresh')
      return id === 8 ? jsonResponse({ access_token: tokenFor(8) }) : problemResponse('invalid-session', 401)
    return path === '/api/users/me' ? jsonResponse(user({ id })) : new Response(null, { status: 204 })
  }
  const { place } = await follow(ResetPasswordPage, '/reset-password#token=secret')
  const session = useSession(pinia)
  setToken(tokenFor(id))
  await expect.poll(() => session.user?.id).toBe(id)

  await userEvent.type(screen.getByLabelText('New password'), 'a walk by the sea{Enter}')

  await expect.poll(place).toBe('/login')
  expect(session.user?.id ?? null).toBe(left)
})

test('a used link offers to request another', async () => {
  reply = () => problemResponse('invalid-token', 400)
  await follow(ResetPasswordPage, '/reset-password#token=secret')

  await userEvent.type(screen.getByLabelText('New password'), 'a walk by the sea{Enter}')

  expect(await screen.findByText(/This link has been used already/)).toBeInTheDocument()
  expect(screen.getByRole('link', { name: 'Request a link' })).toHaveAttribute('href', '/forgot-password')
  expect(screen.queryByLabelText('New password')).toBeNull()
})

test('a refused password leaves the link usable', async () => {
  reply = () => problemResponse('invalid-input', 422, { errors: { password: ['One of the first.'] } })
  await follow(ResetPasswordPage, '/reset-password#token=secret')
  await userEvent.type(screen.getByLabelText('New password'), 'password{Enter}')
  await expect.poll(() => document.activeElement).toBe(screen.getByLabelText('New password'))

  reply = () => new Response(null, { status: 204 })
  await userEvent.type(screen.getByLabelText('New password'), ' by the sea{Enter}')

  await expect.poll(() => requests.length).toBe(2)
  expect(await requests[1]!.json()).toEqual({ token: 'secret', password: 'password by the sea' })
})
