import userEvent from '@testing-library/user-event'
import { screen, within } from '@testing-library/vue'
import { beforeEach, expect, test } from 'vitest'
import type { Product } from '@/api/client'
import { type CartLine, useCart } from '@/stores/cart'
import { useLiveFeed } from '@/stores/liveFeed'
import { useToasts } from '@/stores/toasts'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, product, stubNetwork } from '@/testing/api'
import { latestSocket, stubSockets } from '@/testing/socket'
import CartPage from './CartPage.vue'

let currentProduct: Product | null

beforeEach(() => {
  currentProduct = product()
  stubNetwork(() => (currentProduct ? jsonResponse(currentProduct) : problemResponse('product-not-found', 404)))
})

function show(fields: Partial<CartLine> = {}) {
  const line = { product_id: 1, quantity: 2, name: 'Chanterelles, 250 g', price: '14.50', image_url: null, ...fields }
  localStorage.setItem('forage.cart.guest', JSON.stringify({ version: 1, key: 'k', lines: [line], sent: null }))
  return renderInApp(CartPage, { at: '/cart' })
}

const checkoutButton = () => screen.getByRole('button', { name: 'Go to the checkout' })

test('an empty cart leads to the shop', async () => {
  await renderInApp(CartPage, { at: '/cart' })

  expect(screen.getByText('An empty basket weighs nothing')).toBeVisible()
  expect(screen.getByRole('link', { name: 'Go to the shop' })).toHaveAttribute('href', '/')
})

test('an empty cart with an unresolved order links to the checkout', async () => {
  const line = { product_id: 1, quantity: 2, name: 'Chanterelles, 250 g', price: '14.50', image_url: null }
  localStorage.setItem(
    'forage.cart.guest',
    JSON.stringify({ version: 1, key: 'k', lines: [], sent: { key: 'j', lines: [line] } }),
  )

  await renderInApp(CartPage, { at: '/cart' })

  expect(screen.getByText(/was sent, and no answer came/)).toBeVisible()
  expect(screen.getByRole('link', { name: 'Go to the checkout' })).toHaveAttribute('href', '/checkout')
})

test('the cart shows its lines and prices at once', async () => {
  stubNetwork(() => new Promise(() => {}))

  await show()

  expect(screen.getByRole('link', { name: 'Chanterelles, 250 g' })).toHaveAttribute('href', '/products/1')
  expect(screen.getByText('€14.50 each')).toBeVisible()
  expect(within(screen.getByRole('region', { name: 'Summary' })).getAllByText('€29.00')).toHaveLength(2)
  expect(checkoutButton()).toBeEnabled()
})

test('a changed price blocks the checkout until it is accepted', async () => {
  const { pinia } = await show({ price: '13.00' })
  expect(await screen.findByText('The price was €13.00, it is now €14.50.')).toBeVisible()
  expect(checkoutButton()).toBeDisabled()

  await userEvent.click(screen.getByRole('button', { name: 'Accept the new price: Chanterelles, 250 g' }))

  expect(useCart(pinia).lines).toMatchObject([{ price: '14.50' }])
  expect(checkoutButton()).toBeEnabled()
  expect(screen.getByRole('link', { name: 'Chanterelles, 250 g' })).toHaveFocus()
})

test('a line that runs short says so and can be set to the rest', async () => {
  stubSockets()
  const { pinia, queryClient } = await show()
  useLiveFeed(pinia).open()
  await expect.poll(() => queryClient.getQueryData(['product', 1])).toBeTruthy()
  expect(screen.queryByText(/left/)).not.toBeInTheDocument()

  latestSocket().receive({
    type: 'product',
    data: { id: 1, price: '14.50', stock_quantity: 1, is_active: true, revision: 1 },
  })
  await userEvent.click(await screen.findByRole('button', { name: 'Set to 1: Chanterelles, 250 g' }))

  expect(useCart(pinia).count).toBe(1)
  expect(checkoutButton()).toBeEnabled()
})

test('a line that is no longer sold can only be removed', async () => {
  currentProduct = null
  const { pinia } = await show()

  await userEvent.click(await screen.findByRole('button', { name: 'Remove it: Chanterelles, 250 g' }))

  expect(useCart(pinia).lines).toEqual([])
})

test("a removed line is restored by the toast's undo", async () => {
  const { pinia } = await show()

  await userEvent.click(screen.getByRole('button', { name: 'Remove: Chanterelles, 250 g' }))
  expect(useCart(pinia).lines).toEqual([])
  useToasts(pinia).toasts[0]!.action!.run()

  expect(useCart(pinia).count).toBe(2)
})

test('a quantity above the stock is corrected with a note', async () => {
  currentProduct = product({ stock_quantity: 4 })
  const { pinia, queryClient } = await show()
  await expect.poll(() => queryClient.getQueryData(['product', 1])).toBeTruthy()
  const field = screen.getByRole('textbox', { name: 'Quantity of Chanterelles, 250 g' })

  await userEvent.clear(field)
  await userEvent.type(field, '9')
  await userEvent.tab()

  expect(useCart(pinia).count).toBe(4)
  expect(field).toHaveValue('4')
  expect(screen.getByText('You can have 4 at most right now.')).toBeVisible()
})

test('a stepper button at its limit keeps the focus and does nothing', async () => {
  const { pinia } = await show()
  const fewer = screen.getByRole('button', { name: 'One fewer' })

  await userEvent.dblClick(fewer)

  expect(fewer).toHaveAttribute('aria-disabled', 'true')
  expect(fewer).toBeEnabled()
  expect(fewer).toHaveFocus()
  expect(useCart(pinia).count).toBe(1)
})

test('an invalid quantity changes nothing', async () => {
  const { pinia } = await show()
  const field = screen.getByRole('textbox', { name: 'Quantity of Chanterelles, 250 g' })

  await userEvent.clear(field)
  await userEvent.type(field, 'two')
  await userEvent.tab()

  expect(useCart(pinia).count).toBe(2)
  expect(field).toHaveValue('2')
})

test('an unreachable catalogue does not block the checkout', async () => {
  stubNetwork(() => problemResponse('service-unavailable', 503))

  await show()

  expect(await screen.findByText(/could not check whether all of this is still available/)).toBeVisible()
  expect(checkoutButton()).toBeEnabled()
})
