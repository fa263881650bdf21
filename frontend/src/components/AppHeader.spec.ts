import { screen } from '@testing-library/vue'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, expect, test } from 'vitest'
import { clearToken } from '@/api/token'
import { useSession } from '@/stores/session'
import { renderInApp } from '@/testing/render'
import { jsonResponse, stubNetwork, user } from '@/testing/api'
import { stubSockets } from '@/testing/socket'
import { tokenFor } from '@/testing/token'
import AppHeader from './AppHeader.vue'

let pinia: Pinia
afterEach(() => {
  disposePinia(pinia)
  clearToken()
})

const items = () => screen.getByRole('navigation').children.length

test('after a reload the header reserves space for the items of a logged-in user', async () => {
  localStorage.setItem('forage.logged-in', '7')
  stubSockets()
  stubNetwork((_, path) => {
    if (path === '/api/auth/refresh') return jsonResponse({ access_token: tokenFor(7) })
    return jsonResponse(path === '/api/users/me' ? user() : { notifications: [], total: 0 })
  })
  ;({ pinia } = await renderInApp(AppHeader))
  expect(screen.queryByRole('link', { name: 'Log in' })).toBeNull()
  expect(screen.getByRole('link', { name: 'Orders' })).toBeInTheDocument()
  const before = items()

  await useSession(pinia).restore()

  expect(await screen.findByRole('button', { name: 'Account' })).toHaveClass('size-11')
  expect(await screen.findByRole('button', { name: 'Notifications' })).toBeInTheDocument()
  expect(items()).toBe(before)
})

test('a guest sees the login link and nothing that requires a login', async () => {
  ;({ pinia } = await renderInApp(AppHeader))

  expect(screen.getByRole('link', { name: 'Log in' })).toBeInTheDocument()
  expect(screen.queryByRole('link', { name: 'Orders' })).toBeNull()
})
