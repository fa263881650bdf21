import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { dropToken, keepToken } from '@/api/token'
import { renderInApp } from '@/testing/render'
import { answer, product, stubNetwork, user } from '@/testing/shop'
import { tokenOf } from '@/testing/token'
import { useCart } from './cart'
import { useSession } from './session'
import { useToasts } from './toasts'

let pinia: Pinia
beforeEach(async () => {
  stubNetwork(() => answer(user()))
  pinia = (await renderInApp({ template: '<div />' })).pinia
})
afterEach(() => {
  disposePinia(pinia)
  dropToken()
})

test('of several at once the latest three are shown', () => {
  const toasts = useToasts(pinia)

  for (const title of ['one', 'two', 'three', 'four']) toasts.show({ kind: 'info', title })

  expect(toasts.toasts.map(({ title }) => title)).toEqual(['two', 'three', 'four'])
})

test('what was said to one user, and can be undone, is not for the next', async () => {
  const toasts = useToasts(pinia)
  const session = useSession(pinia)
  keepToken(tokenOf(7))
  await session.begin()
  const cart = useCart(pinia)
  cart.add(product(), 1)
  toasts.show({ kind: 'info', title: 'Removed', action: { label: 'Undo', run: cart.remove(1) } })

  session.leave()

  expect(toasts.toasts).toEqual([])
})

test('a guest who logs in keeps what was said', async () => {
  const toasts = useToasts(pinia)
  toasts.show({ kind: 'success', title: 'Welcome!' })

  keepToken(tokenOf(7))
  await useSession(pinia).begin()

  expect(toasts.toasts).toHaveLength(1)
})
