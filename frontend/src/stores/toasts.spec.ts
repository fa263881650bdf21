import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { clearToken, setToken } from '@/api/token'
import { renderInApp } from '@/testing/render'
import { jsonResponse, product, stubNetwork, user } from '@/testing/api'
import { tokenFor } from '@/testing/token'
import { useCart } from './cart'
import { useSession } from './session'
import { useToasts } from './toasts'

let pinia: Pinia
beforeEach(async () => {
  stubNetwork(() => jsonResponse(user()))
  pinia = (await renderInApp({ template: '<div />' })).pinia
})
afterEach(() => {
  disposePinia(pinia)
  clearToken()
})

test('the latest three toasts are shown', () => {
  const toasts = useToasts(pinia)

  for (const title of ['one', 'two', 'three', 'four']) toasts.show({ kind: 'info', title })

  expect(toasts.toasts.map(({ title }) => title)).toEqual(['two', 'three', 'four'])
})

test('toasts are cleared when the user changes', async () => {
  const toasts = useToasts(pinia)
  const session = useSession(pinia)
  setToken(tokenFor(7))
  await session.restore()
  const cart = useCart(pinia)
  cart.add(product(), 1)
  toasts.show({ kind: 'info', title: 'Removed', action: { label: 'Undo', run: cart.remove(1) } })

  session.clear()

  expect(toasts.toasts).toEqual([])
})

test('a guest who logs in keeps the toasts', async () => {
  const toasts = useToasts(pinia)
  toasts.show({ kind: 'success', title: 'Welcome!' })

  setToken(tokenFor(7))
  await useSession(pinia).restore()

  expect(toasts.toasts).toHaveLength(1)
})
