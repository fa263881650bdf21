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

test('a product with much stock shows its price and no stock', async () => {
  await show()

  expect(screen.getByText('€14.50')).toBeVisible()
  expect(screen.queryByText(/left|in stock|sold out/i)).not.toBeInTheDocument()
  expect(screen.getByRole('link', { name: 'Chanterelles, 250 g' })).toHaveAttribute('href', '/products/1')
})

test('a product with low stock shows how many are left', async () => {
  await show({ stock_quantity: 3 })

  expect(screen.getByText('Only 3 left')).toBeVisible()
})

test('a product above the low-stock level shows no count', async () => {
  await show({ stock_quantity: 6 })

  expect(screen.queryByText(/left/)).not.toBeInTheDocument()
})

test('a sold-out product says so and cannot be added to the cart', async () => {
  await show({ stock_quantity: 0 })

  expect(screen.getByRole('button', { name: 'Sold out' })).toBeDisabled()
})

test('a product that is no longer sold says so', async () => {
  await show({ is_active: false })

  expect(screen.getByText('No longer sold')).toBeVisible()
  expect(screen.getByRole('button')).toBeDisabled()
})

test('the button adds one to the cart and shows a toast', async () => {
  const { pinia } = await show()

  await userEvent.click(screen.getByRole('button', { name: 'Add to cart: Chanterelles, 250 g' }))

  expect(useCart(pinia).lines).toMatchObject([{ product_id: 1, quantity: 1, price: '14.50' }])
  expect(useToasts(pinia).toasts).toMatchObject([
    { title: 'Chanterelles, 250 g is in your cart', link: { to: { name: 'cart' } } },
  ])
})

test('once the whole stock is in the cart, no more can be added', async () => {
  await show({ stock_quantity: 1 })

  await userEvent.click(screen.getByRole('button', { name: /Add to cart/ }))

  expect(screen.getByRole('button', { name: 'All in your cart' })).toBeDisabled()
})

test('hovering over a product prefetches it', async () => {
  const { queryClient } = await show()

  await userEvent.hover(screen.getByRole('link'))

  await expect.poll(() => queryClient.getQueryData(['product', 1])).toBeTruthy()
  expect(requests.map(({ url }) => new URL(url).pathname)).toEqual(['/api/products/1'])
})

test('a failed prefetch is not an error', async () => {
  const unhandled = vi.fn()
  process.once('unhandledRejection', unhandled)
  await show()

  await userEvent.hover(screen.getByRole('link', { name: 'Chanterelles, 250 g' }))
  await new Promise((resolve) => setTimeout(resolve))
  await expect(import('@/pages/ProductPage.vue')).rejects.toThrow()

  expect(unhandled).not.toHaveBeenCalled()
  process.off('unhandledRejection', unhandled)
})
