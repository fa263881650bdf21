import { screen } from '@testing-library/vue'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, expect, test } from 'vitest'
import { dropToken } from '@/api/token'
import { useSession } from '@/stores/session'
import { renderInApp } from '@/testing/render'
import { answer, stubNetwork, user } from '@/testing/shop'
import { stubSockets } from '@/testing/socket'
import { tokenOf } from '@/testing/token'
import AppHeader from './AppHeader.vue'

let pinia: Pinia
afterEach(() => {
  disposePinia(pinia)
  dropToken()
})

const items = () => screen.getByRole('navigation').children.length

test('on a reload the header has room for all that comes for who is logged in', async () => {
  localStorage.setItem('forage.logged-in', '7')
  stubSockets()
  stubNetwork((_, path) => {
    if (path === '/api/auth/refresh') return answer({ access_token: tokenOf(7) })
    return answer(path === '/api/users/me' ? user() : { notifications: [], total: 0 })
  })
  ;({ pinia } = await renderInApp(AppHeader))
  expect(screen.queryByRole('link', { name: 'Log in' })).toBeNull()
  expect(screen.getByRole('link', { name: 'Orders' })).toBeInTheDocument()
  const before = items()

  await useSession(pinia).begin()

  expect(await screen.findByRole('button', { name: 'Account' })).toHaveClass('size-11')
  expect(await screen.findByRole('button', { name: 'Notifications' })).toBeInTheDocument()
  expect(items()).toBe(before)
})

test('a guest is offered to log in, and nothing that needs it', async () => {
  ;({ pinia } = await renderInApp(AppHeader))

  expect(screen.getByRole('link', { name: 'Log in' })).toBeInTheDocument()
  expect(screen.queryByRole('link', { name: 'Orders' })).toBeNull()
})
