import userEvent from '@testing-library/user-event'
import { screen } from '@testing-library/vue'
import { beforeEach, expect, test } from 'vitest'
import type { Product } from '@/api/client'
import { useCart } from '@/stores/cart'
import { useSession } from '@/stores/session'
import { useToasts } from '@/stores/toasts'
import { renderInApp } from '@/testing/render'
import { jsonResponse, order, problemResponse, product, stubNetwork } from '@/testing/api'
import CheckoutPage from './CheckoutPage.vue'

const KEY = '0123456789abcdef'
const ITEM = {
  id: 1,
  order_id: 31,
  product_id: 1,
  product_name: 'Chanterelles, 250 g',
  product_price: '14.50',
  quantity: 2,
  subtotal: '29.00',
  created_at: '',
}
const ORDERED = jsonResponse(order({ items: [ITEM] }), 201)

let currentProduct: Product
let requests: Request[]
/** The responses to the orders sent, in turn. Later orders succeed. */
let answers: (Response | Promise<Response> | Error)[]

beforeEach(() => {
  localStorage.setItem('forage.logged-in', '7')
  const line = { product_id: 1, quantity: 2, name: 'Chanterelles, 250 g', price: '14.50', image_url: null }
  localStorage.setItem('forage.cart.7', JSON.stringify({ version: 1, key: KEY, lines: [line], sent: null }))
  currentProduct = product()
  answers = []
  requests = stubNetwork((request) => {
    if (request.method === 'GET') return jsonResponse(currentProduct)
    const next = answers.shift() ?? ORDERED.clone()
    if (next instanceof Error) throw next
    return next
  })
})

const stored = (customer: number) => JSON.parse(localStorage.getItem(`forage.cart.${customer}`)!)
const orders = () => requests.filter(({ method }) => method === 'POST')
const keys = () => orders().map(({ headers }) => headers.get('Idempotency-Key'))
const placeButton = () => screen.getByRole('button', { name: 'Place the order' })
/** Finds an announced sentence. */
const findAlert = (words: string) =>
  screen.findByText((text, element) => text.includes(words) && element?.closest('[role=alert]') !== null)
const show = () => renderInApp(CheckoutPage, { at: '/checkout' })

test('the order is sent with the shown prices and its page replaces the checkout', async () => {
  const { router, pinia } = await show()

  await userEvent.click(placeButton())

  await expect.poll(() => router.currentRoute.value.fullPath).toBe('/orders/31?placed=1')
  expect(await orders()[0]!.json()).toEqual({ items: [{ product_id: 1, quantity: 2, unit_price: '14.50' }] })
  expect(keys()).toEqual([KEY])
  expect(useCart(pinia).lines).toEqual([])
})

test('a double click sends one order', async () => {
  let finish: (response: Response) => void = () => {}
  answers = [new Promise<Response>((resolve) => (finish = resolve))]
  const { router } = await show()

  placeButton().click()
  placeButton().click()
  await userEvent.dblClick(placeButton())
  finish(ORDERED.clone())

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders/31')
  expect(orders()).toHaveLength(1)
})

test('a lost connection is retried with the same key', async () => {
  answers = [new TypeError('Failed to fetch')]
  const { router } = await show()

  await userEvent.click(placeButton())

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders/31')
  expect(keys()).toEqual([KEY, KEY])
})

test('during a long outage the cart is kept, and pressing again sends the same key', async () => {
  answers = [1, 2, 3].map(() => problemResponse('service-unavailable', 503, {}, { 'Retry-After': '0.01' }))
  const { pinia, router } = await show()

  await userEvent.click(placeButton())
  expect(await findAlert('pressing the button again is safe')).toBeVisible()
  expect(useCart(pinia).count).toBe(2)
  await userEvent.click(placeButton())

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders/31')
  expect(keys()).toEqual([KEY, KEY, KEY, KEY])
})

test('a reload after sending the order sends the same key', async () => {
  answers = [new Promise<Response>(() => {})]
  const { unmount } = await show()
  await userEvent.click(placeButton())
  unmount()

  const { router } = await show()
  await userEvent.click(placeButton())

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders/31')
  expect(keys()).toEqual([KEY, KEY])
})

test('a cart without stock can be sent only if its order may already exist', async () => {
  answers = [1, 2, 3].map(() => problemResponse('timeout', 504, {}, { 'Retry-After': '0.01' }))
  const { unmount } = await show()
  await userEvent.click(placeButton())
  await findAlert('pressing the button again is safe')
  unmount()
  currentProduct = product({ stock_quantity: 0 })

  const { router } = await show()
  expect(screen.getByText(/was sent as an order/)).toBeVisible()
  await expect.poll(() => requests.at(-1)!.method).toBe('GET')
  expect(screen.queryByText('This is sold out.')).not.toBeInTheDocument()
  await userEvent.click(placeButton())

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders/31')
  expect(keys()).toEqual([KEY, KEY, KEY, KEY])
})

test('changing the cart before the outcome is known makes no second order', async () => {
  answers = [1, 2, 3].map(() => problemResponse('timeout', 504, {}, { 'Retry-After': '0.01' }))
  const { pinia, router } = await show()
  await userEvent.click(placeButton())
  await findAlert('pressing the button again is safe')
  currentProduct = product({ stock_quantity: 1 })
  useCart(pinia).setQuantity(1, 1)
  useCart(pinia).add(product({ id: 2, name: 'Morels' }), 1)

  expect(screen.getByText('2 × €14.50')).toBeVisible()
  expect(screen.queryByText('Morels')).not.toBeInTheDocument()
  await userEvent.click(placeButton())

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders/31')
  expect(keys()).toEqual([KEY, KEY, KEY, KEY])
  expect(await orders()[3]!.json()).toEqual({ items: [{ product_id: 1, quantity: 2, unit_price: '14.50' }] })
  expect(useCart(pinia).lines).toMatchObject([{ name: 'Morels' }])
})

test('the changed cart can be ordered once the order sent before is refused', async () => {
  answers = [1, 2, 3].map(() => problemResponse('timeout', 504, {}, { 'Retry-After': '0.01' }))
  answers.push(problemResponse('insufficient-stock', 409, { product_id: 1, requested: 2, available: 1 }))
  const { pinia, router } = await show()
  await userEvent.click(placeButton())
  await findAlert('pressing the button again is safe')
  useCart(pinia).setQuantity(1, 1)

  await userEvent.click(placeButton())
  await findAlert('Only 1 of “Chanterelles, 250 g” are left, you asked for 2. Nothing was ordered.')
  expect(screen.getByText('1 × €14.50')).toBeVisible()
  await userEvent.click(placeButton())

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders/31')
  expect(await orders()[4]!.json()).toEqual({ items: [{ product_id: 1, quantity: 1, unit_price: '14.50' }] })
  expect(keys()[4]).not.toBe(KEY)
})

test('an order is not retried after another user has logged in', async () => {
  answers = [problemResponse('service-unavailable', 503, {}, { 'Retry-After': '1' })]
  localStorage.setItem('forage.cart.8', localStorage.getItem('forage.cart.7')!)
  const { pinia } = await show()

  await userEvent.click(placeButton())
  await expect.poll(() => orders().length).toBe(1)
  useSession(pinia).knownUserId = '8'

  await findAlert('No clear answer came')
  expect(orders()).toHaveLength(1)
})

test.each([
  ['too little stock', problemResponse('insufficient-stock', 409, { product_id: 1, requested: 2, available: 1 }), KEY],
  ['too many open orders', problemResponse('too-many-open-orders', 409), KEY],
  ['a key of another order', problemResponse('key-reused', 422), expect.not.stringMatching(KEY)],
])("%s, answered after another user has logged in, changes only the buyer's cart", async (_, late, key) => {
  let finish: (response: Response) => void = () => {}
  answers = [new Promise<Response>((resolve) => (finish = resolve))]
  const theirs = JSON.stringify({ ...stored(7), sent: { key: KEY, lines: stored(7).lines } })
  localStorage.setItem('forage.cart.8', theirs)
  const { pinia } = await show()
  await userEvent.click(placeButton())

  useSession(pinia).knownUserId = '8'
  finish(late)

  await expect.poll(() => stored(7)).toMatchObject({ key, sent: null })
  expect(JSON.stringify(stored(8))).toBe(theirs)
})

test('a placed order is not shown to another user who has logged in', async () => {
  let finish: (response: Response) => void = () => {}
  answers = [new Promise<Response>((resolve) => (finish = resolve))]
  const { pinia, router } = await show()
  await userEvent.click(placeButton())

  useSession(pinia).knownUserId = '8'
  finish(ORDERED.clone())

  await expect.poll(() => stored(7).lines).toEqual([])
  expect(router.currentRoute.value.path).toBe('/checkout')
  expect(useToasts(pinia).toasts).toEqual([])
})

test('an order in flight is retried with the same key', async () => {
  answers = [1, 2].map(() => problemResponse('request-in-flight', 409, {}, { 'Retry-After': '0.01' }))
  const { router } = await show()

  await userEvent.click(placeButton())

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders/31')
  expect(keys()).toEqual([KEY, KEY, KEY])
})

test('too little stock shows the product and the rest, and one click fixes the cart', async () => {
  answers = [problemResponse('insufficient-stock', 409, { product_id: 1, requested: 2, available: 1 })]
  const { pinia } = await show()
  await expect.poll(() => requests.length).toBe(1)
  currentProduct = product({ stock_quantity: 1 })

  await userEvent.click(placeButton())
  expect(await findAlert('Only 1 of “Chanterelles, 250 g” are left, you asked for 2.')).toBeVisible()
  await userEvent.click(await screen.findByRole('button', { name: 'Set to 1: Chanterelles, 250 g' }))

  expect(useCart(pinia).count).toBe(1)
  expect(useCart(pinia).key).not.toBe(KEY)
  expect(screen.queryByText(/you asked for/)).not.toBeInTheDocument()
  expect(screen.getByRole('heading', { name: 'Checkout' })).toHaveFocus()
  expect(placeButton()).toBeEnabled()
})

test('too many open orders show the limits, and a smaller order can be placed', async () => {
  const figures = { open_orders: 20, open_units: 38, requested_units: 2, most_orders: 20, most_units: 1200 }
  answers = [problemResponse('too-many-open-orders', 409, figures)]
  await show()

  await userEvent.click(placeButton())

  expect(
    await findAlert('You have 20 open orders with 38 items. At most 20 orders with 1,200 items in all may be open'),
  ).toBeVisible()
  expect(placeButton()).toBeEnabled()
})

test('a raised price must be accepted before the order is placed', async () => {
  answers = [problemResponse('price-changed', 409, { product_id: 1, given: '14.50', current: '16.00' })]
  await show()
  await expect.poll(() => requests.length).toBe(1)
  currentProduct = product({ price: '16.00' })

  await userEvent.click(placeButton())
  expect(await findAlert('costs €16.00 now, no longer €14.50')).toBeVisible()
  await userEvent.click(await screen.findByRole('button', { name: /Accept the new price/ }))
  await userEvent.click(placeButton())

  await expect.poll(() => orders()).toHaveLength(2)
  expect(await orders()[1]!.json()).toEqual({ items: [{ product_id: 1, quantity: 2, unit_price: '16.00' }] })
})

test('a product that is no longer sold can be removed', async () => {
  answers = [problemResponse('product-not-found', 404, { product_id: 1 })]
  const { pinia } = await show()
  await expect.poll(() => requests.length).toBe(1)
  currentProduct = product({ is_active: false })

  await userEvent.click(placeButton())
  expect(await findAlert('“Chanterelles, 250 g” is no longer sold')).toBeVisible()
  await userEvent.click(await screen.findByRole('button', { name: /Remove it/ }))

  expect(useCart(pinia).lines).toEqual([])
})

test('an order with invalid values shows a translated message', async () => {
  answers = [
    problemResponse('invalid-input', 422, { errors: { items: { 0: { quantity: ['Must be less than 5.'] } } } }),
  ]
  await show()

  await userEvent.click(placeButton())

  expect(await findAlert("The shop can't accept this cart as an order. Nothing was ordered.")).toBeVisible()
  expect(screen.queryByText(/Must be/)).not.toBeInTheDocument()
})

test('a cart with issues cannot be ordered', async () => {
  currentProduct = product({ stock_quantity: 0 })

  await show()

  expect(await screen.findByText('This is sold out.')).toBeVisible()
  expect(placeButton()).toBeDisabled()
})

test('a key of another order is explained, and pressing again uses a new key', async () => {
  answers = [problemResponse('key-reused', 422)]
  const { router } = await show()

  await userEvent.click(placeButton())
  expect(await findAlert('An order was placed from an earlier state of this cart')).toBeVisible()
  await userEvent.click(placeButton())

  await expect.poll(() => router.currentRoute.value.path).toBe('/orders/31')
  expect(keys()[1]).not.toBe(KEY)
})

test('an order answered after leaving the checkout shows as a toast', async () => {
  let finish: (response: Response) => void = () => {}
  answers = [new Promise<Response>((resolve) => (finish = resolve))]
  const { router, pinia } = await show()
  await userEvent.click(placeButton())

  await router.push('/')
  finish(ORDERED.clone())

  await expect.poll(() => useCart(pinia).lines).toEqual([])
  expect(router.currentRoute.value.path).toBe('/')
  expect(useToasts(pinia).toasts.map(({ title }) => title)).toEqual(['Order 31 is placed'])
})
