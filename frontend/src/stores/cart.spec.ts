import { QueryClient, VueQueryPlugin } from '@tanstack/vue-query'
import { createPinia, type Pinia, setActivePinia } from 'pinia'
import { createApp } from 'vue'
import { beforeEach, expect, test } from 'vitest'
import { order, product, user } from '@/testing/api'
import { MAX_LINES, MAX_QUANTITY, useCart } from './cart'
import { useSession } from './session'
import { useToasts } from './toasts'

/** A tab has its own stores and shares localStorage. */
function openTab(): Pinia {
  const app = createApp({})
  const pinia = createPinia()
  app.use(pinia).use(VueQueryPlugin, { queryClient: new QueryClient() })
  setActivePinia(pinia)
  return pinia
}

const stored = (owner: string) => JSON.parse(localStorage.getItem(`forage.cart.${owner}`) ?? 'null')

/** The browser's event in the other tabs. */
const notifyTabs = (owner: string) => window.dispatchEvent(new StorageEvent('storage', { key: `forage.cart.${owner}` }))

/** Sets the session as a login does. */
function logIn(pinia: Pinia, id = 7) {
  const session = useSession(pinia)
  session.user = user({ id })
  session.knownUserId = String(id)
}

let pinia: Pinia
beforeEach(() => {
  pinia = openTab()
})

test('the cart survives a reload', () => {
  useCart(pinia).add(product(), 2)

  const cart = useCart(openTab())

  expect(cart.lines).toEqual([
    { product_id: 1, quantity: 2, name: 'Chanterelles, 250 g', price: '14.50', image_url: null },
  ])
  expect(cart.count).toBe(2)
})

test('a change in one tab shows in the other', () => {
  const here = useCart(pinia)
  const there = useCart(openTab())

  there.add(product(), 2)
  notifyTabs('guest')

  expect(here.lines).toEqual(there.lines)
  expect(here.key).toBe(there.key)
})

test('two tabs that change the cart in turn keep both changes', () => {
  const here = useCart(pinia)
  const there = useCart(openTab())

  there.add(product({ id: 1 }), 1)
  here.add(product({ id: 2 }), 1)

  expect(here.lines.map((line) => line.product_id)).toEqual([1, 2])
})

test('no more units are added than are in stock', () => {
  const cart = useCart(pinia)

  expect(cart.add(product({ stock_quantity: 3 }), 2)).toBe(2)
  expect(cart.add(product({ stock_quantity: 3 }), 2)).toBe(1)
  expect(cart.add(product({ stock_quantity: 3 }), 1)).toBe(0)
  expect(cart.quantityOf(1)).toBe(3)
})

test('no more units are added than an order may hold of one product', () => {
  const cart = useCart(pinia)

  cart.add(product({ stock_quantity: 2 * MAX_QUANTITY }), 2 * MAX_QUANTITY)

  expect(cart.quantityOf(1)).toBe(MAX_QUANTITY)
})

test('no more products are added than an order may hold', () => {
  const cart = useCart(pinia)
  for (let id = 1; id <= MAX_LINES; id++) cart.add(product({ id }), 1)

  expect(cart.add(product({ id: MAX_LINES + 1 }), 1)).toBe(0)
  expect(cart.add(product({ id: 1 }), 1)).toBe(1)
  expect(cart.lines).toHaveLength(MAX_LINES)
})

test('undoing a removal restores the line in its place', () => {
  const cart = useCart(pinia)
  for (const id of [1, 2, 3]) cart.add(product({ id }), id)

  const undo = cart.remove(2)
  expect(cart.lines.map((line) => line.product_id)).toEqual([1, 3])
  undo()

  expect(cart.lines.map((line) => [line.product_id, line.quantity])).toEqual([
    [1, 1],
    [2, 2],
    [3, 3],
  ])
})

test("logging in moves the guest's cart into the user's", () => {
  const cart = useCart(pinia)
  cart.add(product({ id: 1 }), 2)
  localStorage.setItem('forage.cart.7', JSON.stringify({ ...stored('guest'), key: 'own' }))
  cart.add(product({ id: 2 }), 1)

  logIn(pinia)

  expect(cart.lines.map((line) => [line.product_id, line.quantity])).toEqual([
    [1, 4],
    [2, 1],
  ])
  expect(localStorage.getItem('forage.cart.guest')).toBeNull()
})

test('merged quantities stay within the limit', () => {
  const cart = useCart(pinia)
  cart.add(product({ stock_quantity: MAX_QUANTITY }), MAX_QUANTITY - 1)
  localStorage.setItem('forage.cart.7', JSON.stringify({ ...stored('guest'), key: 'own' }))

  logIn(pinia)

  expect(cart.quantityOf(1)).toBe(MAX_QUANTITY)
})

test('products that no longer fit into the merged cart are named', () => {
  const cart = useCart(pinia)
  for (let id = 1; id <= MAX_LINES; id++) cart.add(product({ id }), 1)
  localStorage.setItem('forage.cart.7', JSON.stringify({ ...stored('guest'), key: 'own' }))
  cart.remove(1)
  cart.add(product({ id: 500, name: 'Morels' }), 1)

  logIn(pinia)

  expect(cart.lines).toHaveLength(MAX_LINES)
  expect(useToasts(pinia).toasts).toMatchObject([{ kind: 'error', text: 'Morels' }])
})

test("two tabs that both merge on a login count the guest's cart once", () => {
  const here = useCart(pinia)
  here.add(product(), 2)
  const guest = localStorage.getItem('forage.cart.guest') ?? ''
  const otherTab = openTab()
  const there = useCart(otherTab)

  logIn(pinia)
  localStorage.setItem('forage.cart.guest', guest)
  logIn(otherTab)

  expect(there.quantityOf(1)).toBe(2)
  expect(there.key).toBe(here.key)
})

test("after a logout the user's cart is hidden and kept", () => {
  const cart = useCart(pinia)
  logIn(pinia)
  cart.add(product(), 2)

  useSession(pinia).user = null
  useSession(pinia).knownUserId = null
  expect(cart.lines).toEqual([])

  logIn(pinia)
  expect(cart.count).toBe(2)
})

test("a reload shows the user's cart before the session is restored", () => {
  logIn(pinia)
  useCart(pinia).add(product(), 2)
  localStorage.setItem('forage.logged-in', '7')

  expect(useCart(openTab()).count).toBe(2)
})

const line = { product_id: 1, quantity: 1, name: 'x', price: '1.00', image_url: null }
test.each([
  ['no JSON', '{'],
  ['null', 'null'],
  ['a number', '5'],
  ['an older release', JSON.stringify([line])],
  ['another version', JSON.stringify({ version: 0, key: 'k', lines: [line], sent: null })],
  ['no key', JSON.stringify({ version: 1, lines: [line], sent: null })],
  ['a key that fits no header', JSON.stringify({ version: 1, key: 'ü\n', lines: [line], sent: null })],
  [
    'an impossible product id',
    JSON.stringify({ version: 1, key: 'k', lines: [{ ...line, product_id: 0 }], sent: null }),
  ],
  ['lines that are null', JSON.stringify({ version: 1, key: 'k', lines: [null], sent: null })],
  ['a quantity of zero', JSON.stringify({ version: 1, key: 'k', lines: [{ ...line, quantity: 0 }], sent: null })],
  ['a fractional quantity', JSON.stringify({ version: 1, key: 'k', lines: [{ ...line, quantity: 0.5 }], sent: null })],
  ['a price that is a number', JSON.stringify({ version: 1, key: 'k', lines: [{ ...line, price: 1 }], sent: null })],
  ['a price without cents', JSON.stringify({ version: 1, key: 'k', lines: [{ ...line, price: '1' }], sent: null })],
  ['an invalid sent order', JSON.stringify({ version: 1, key: 'k', lines: [line], sent: { key: 'k' } })],
  ['no field for the sent order', JSON.stringify({ version: 1, key: 'k', lines: [line] })],
  ['one product twice', JSON.stringify({ version: 1, key: 'k', lines: [line, line], sent: null })],
])('an invalid stored cart is ignored: %s', (_, text) => {
  localStorage.setItem('forage.cart.guest', text)

  const cart = useCart(pinia)

  expect(cart.lines).toEqual([])
  expect(cart.add(product(), 1)).toBe(1)
})

test('the key is the same after a reload and in a second tab', () => {
  const cart = useCart(pinia)
  cart.add(product(), 1)

  expect(useCart(openTab()).key).toBe(cart.key)
})

test.each<[string, (cart: ReturnType<typeof useCart>) => void]>([
  ['another product', (cart) => cart.add(product({ id: 2 }), 1)],
  ['one more of a line', (cart) => cart.add(product(), 1)],
  ['another quantity', (cart) => cart.setQuantity(1, 3)],
  ['another price', (cart) => cart.acceptPrice(1, '15.00')],
  ['a line removed', (cart) => cart.remove(1)],
])('the key changes: %s', (_, change) => {
  const cart = useCart(pinia)
  cart.add(product(), 1)
  const before = cart.key

  change(cart)

  expect(cart.key).not.toBe(before)
})

test('a changed name or picture is taken over without changing the key', () => {
  const cart = useCart(pinia)
  cart.add(product(), 1)
  const before = cart.key

  cart.updateDetails([product({ name: 'Girolles', price: '99.00' })])

  expect(cart.lines).toMatchObject([{ name: 'Girolles', price: '14.50' }])
  expect(cart.key).toBe(before)
})

const item = {
  id: 1,
  order_id: 31,
  product_id: 1,
  product_name: 'x',
  product_price: '14.50',
  quantity: 2,
  subtotal: '29.00',
  created_at: '',
}

test('a placed order empties the cart and renews the key', () => {
  const cart = useCart(pinia)
  logIn(pinia)
  cart.add(product(), 2)
  const before = cart.key

  cart.removeOrdered(before, order({ items: [item] }))

  expect(cart.lines).toEqual([])
  expect(cart.key).not.toBe(before)
})

test('items added in another tab during the order stay', () => {
  const cart = useCart(pinia)
  logIn(pinia)
  cart.add(product(), 2)
  const { key } = cart.markSent()
  cart.add(product(), 1)
  cart.add(product({ id: 2 }), 1)

  cart.removeOrdered(key, order({ items: [item] }))

  expect(cart.lines.map((line) => [line.product_id, line.quantity])).toEqual([
    [1, 1],
    [2, 1],
  ])
})

test('an order reported twice is removed from the cart once', () => {
  const cart = useCart(pinia)
  logIn(pinia)
  cart.add(product(), 2)
  const { key } = cart.markSent()
  cart.removeOrdered(key, order({ items: [item] }))
  cart.add(product(), 2)

  cart.removeOrdered(key, order({ items: [item] }))

  expect(cart.count).toBe(2)
})

test.each<[string, (cart: ReturnType<typeof useCart>) => void]>([
  ['a changed line', (cart) => cart.setQuantity(1, 1)],
  ['another product is added', (cart) => cart.add(product({ id: 2 }), 1)],
  ['all removed', (cart) => cart.remove(1)],
  ['a reload', () => {}],
])('the order sent before is sent again after %s', (_, change) => {
  const before = useCart(pinia)
  before.add(product(), 2)
  const sent = before.markSent()

  change(before)

  expect(useCart(openTab()).markSent()).toEqual(sent)
})

test("the order sent before is sent again after merging a guest's cart", () => {
  const cart = useCart(pinia)
  logIn(pinia)
  cart.add(product(), 2)
  const sent = cart.markSent()
  useSession(pinia).user = useSession(pinia).knownUserId = null
  cart.add(product({ id: 2 }), 1)

  logIn(pinia)

  expect(cart.lines).toHaveLength(2)
  expect(cart.markSent()).toEqual(sent)
})

test('a refused order is replaced by the next', () => {
  const cart = useCart(pinia)
  cart.add(product(), 2)
  const { key } = cart.markSent()
  cart.setQuantity(1, 1)

  cart.clearSent('guest', key)

  expect(cart.markSent()).toEqual({ key: cart.key, lines: cart.lines })
})
