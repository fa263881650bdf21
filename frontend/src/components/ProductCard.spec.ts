import { screen } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { beforeEach, expect, test, vi } from 'vitest'
import { renderInApp } from '@/testing/render'
import { jsonResponse, product, stubNetwork } from '@/testing/api'
import { useCart } from '@/stores/cart'
import { useToasts } from '@/stores/toasts'
import ProductCard from './ProductCard.vue'

vi.mock('@/pages/ProductPage.vue', () => {
  throw new TypeError('Failed to fetch dynamically imported module')
})

let requests: Request[]
beforeEach(() => {
  requests = stubNetwork(() => jsonResponse(product()))
})

const show = (fields: Parameters<typeof product>[0] = {}) =>
  renderInApp(ProductCard, { props: { product: product(fields) } })

test('a product that there is plenty of shows its price, and no stock', async () => {
  await show()

  expect(screen.getByText('€14.50')).toBeVisible()
  expect(screen.queryByText(/left|in stock|sold out/i)).not.toBeInTheDocument()
  expect(screen.getByRole('link', { name: 'Chanterelles, 250 g' })).toHaveAttribute('href', '/products/1')
})

test('the last few say how many they are', async () => {
  await show({ stock_quantity: 3 })

  expect(screen.getByText('Only 3 left')).toBeVisible()
})

test('more than the last few do not', async () => {
  await show({ stock_quantity: 6 })

  expect(screen.queryByText(/left/)).not.toBeInTheDocument()
})

test('what is sold out says so and can not be put into the cart', async () => {
  await show({ stock_quantity: 0 })

  expect(screen.getByRole('button', { name: 'Sold out' })).toBeDisabled()
})

test('what is no longer sold says so', async () => {
  await show({ is_active: false })

  expect(screen.getByText('No longer sold')).toBeVisible()
  expect(screen.getByRole('button')).toBeDisabled()
})

test('its button puts one into the cart and says so', async () => {
  const { pinia } = await show()

  await userEvent.click(screen.getByRole('button', { name: 'Add to cart: Chanterelles, 250 g' }))

  expect(useCart(pinia).lines).toMatchObject([{ product_id: 1, quantity: 1, price: '14.50' }])
  expect(useToasts(pinia).toasts).toMatchObject([
    { title: 'Chanterelles, 250 g is in your cart', link: { to: { name: 'cart' } } },
  ])
})

test('once all there are lie in the cart, no more can be put in', async () => {
  await show({ stock_quantity: 1 })

  await userEvent.click(screen.getByRole('button', { name: /Add to cart/ }))

  expect(screen.getByRole('button', { name: 'All in your cart' })).toBeDisabled()
})

test('a product is read before it is opened, when one points at it', async () => {
  const { queryClient } = await show()

  await userEvent.hover(screen.getByRole('link'))

  await expect.poll(() => queryClient.getQueryData(['product', 1])).toBeTruthy()
  expect(requests.map(({ url }) => new URL(url).pathname)).toEqual(['/api/products/1'])
})

test("a page that can not be loaded ahead is nobody's error yet", async () => {
  const unhandled = vi.fn()
  process.once('unhandledRejection', unhandled)
  await show()

  await userEvent.hover(screen.getByRole('link', { name: 'Chanterelles, 250 g' }))
  await new Promise((resolve) => setTimeout(resolve))
  await expect(import('@/pages/ProductPage.vue')).rejects.toThrow()

  expect(unhandled).not.toHaveBeenCalled()
  process.off('unhandledRejection', unhandled)
})
