import userEvent from '@testing-library/user-event'
import { screen } from '@testing-library/vue'
import type { Pinia } from 'pinia'
import { beforeEach, expect, test } from 'vitest'
import type { Product } from '@/api/client'
import { syncPageTitle } from '@/composables/usePageTitle'
import { useCart } from '@/stores/cart'
import { useLiveFeed } from '@/stores/liveFeed'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, product, stubNetwork } from '@/testing/api'
import { latestSocket, stubSockets } from '@/testing/socket'
import ProductPage from './ProductPage.vue'

let pinia: Pinia
let shelf: Product

beforeEach(() => {
  stubSockets()
  shelf = product()
  stubNetwork((_, path) => {
    if (path === '/api/products/1') return jsonResponse(shelf)
    if (path === '/api/products')
      return jsonResponse({ items: [product(), product({ id: 2, name: 'Porcini' })], total: 2, limit: 5, offset: 0 })
    return problemResponse('product-not-found', 404)
  })
})

async function show(at = '/products/1') {
  const rendered = await renderInApp(
    { components: { ProductPage }, setup: syncPageTitle, template: '<ProductPage />' },
    { at },
  )
  pinia = rendered.pinia
  useLiveFeed(pinia).open()
  return rendered
}

const tell = (news: object) =>
  latestSocket().receive({
    type: 'product',
    data: { id: 1, price: '14.50', stock_quantity: 24, is_active: true, revision: 1, ...news },
  })

test('a product shows what it is, what it costs and how many there are', async () => {
  await show()

  expect(await screen.findByRole('heading', { level: 1, name: 'Chanterelles, 250 g' })).toBeVisible()
  expect(screen.getAllByText('€14.50')[0]).toBeVisible()
  expect(screen.getByText('24 in stock')).toBeVisible()
  expect(screen.getByText('Peppery, with a smell of apricots.')).toBeVisible()
  expect(document.title).toBe('Chanterelles, 250 g · Forage')
})

test('others of its category stand below, itself left out', async () => {
  await show()

  expect(await screen.findByRole('link', { name: 'Porcini' })).toBeVisible()
  expect(screen.queryByRole('link', { name: 'Chanterelles, 250 g' })).not.toBeInTheDocument()
})

test('as many as one chooses go into the cart', async () => {
  await show()
  await screen.findByText('24 in stock')

  await userEvent.click(screen.getByRole('button', { name: 'One more' }))
  await userEvent.click(screen.getByRole('button', { name: 'Add to cart' }))

  expect(useCart(pinia).quantityOf(1)).toBe(2)
  expect(screen.getByRole('link', { name: '2 in your cart' })).toBeVisible()
})

test('what lies in the cart already counts against the stock', async () => {
  shelf = product({ stock_quantity: 2 })
  await show()
  await screen.findByText('Only 2 left')

  await userEvent.click(screen.getByRole('button', { name: 'Add to cart' }))

  expect(screen.getByRole('button', { name: 'One more' })).toHaveAttribute('aria-disabled', 'true')
  await userEvent.click(screen.getByRole('button', { name: 'Add to cart' }))
  expect(screen.getByRole('button', { name: 'All in your cart' })).toBeDisabled()
})

test('stock and price change while one looks, and are read out', async () => {
  await show()
  await screen.findByText('24 in stock')

  tell({ stock_quantity: 0, price: '16.00' })

  expect(await screen.findByText('The price is now €16.00. Now: Sold out.')).toHaveAttribute('role', 'status')
  expect(screen.getByRole('button', { name: 'Sold out' })).toBeDisabled()
})

test('a product that is taken away while one looks is gone', async () => {
  await show()
  await screen.findByText('24 in stock')

  tell({ is_active: false })

  expect(await screen.findByRole('heading', { name: 'This one is no longer here' })).toBeVisible()
})

test('a product that there is not has a page that says so', async () => {
  await show('/products/99')

  expect(await screen.findByRole('heading', { name: 'This one is no longer here' })).toBeVisible()
  expect(screen.getByRole('link', { name: 'Go to the shop' })).toBeVisible()
})

test('another product, opened from here, takes the page over', async () => {
  const { router } = await show('/products/99')
  await screen.findByRole('heading', { name: 'This one is no longer here' })

  await router.push('/products/1')

  expect(await screen.findByRole('heading', { name: 'Chanterelles, 250 g' })).toBeVisible()
})
