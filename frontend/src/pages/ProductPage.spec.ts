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
let currentProduct: Product

beforeEach(() => {
  stubSockets()
  currentProduct = product()
  stubNetwork((_, path) => {
    if (path === '/api/products/1') return jsonResponse(currentProduct)
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

const pushUpdate = (news: object) =>
  latestSocket().receive({
    type: 'product',
    data: { id: 1, price: '14.50', stock_quantity: 24, is_active: true, revision: 1, ...news },
  })

test('a product shows its description, price and stock', async () => {
  await show()

  expect(await screen.findByRole('heading', { level: 1, name: 'Chanterelles, 250 g' })).toBeVisible()
  expect(screen.getAllByText('€14.50')[0]).toBeVisible()
  expect(screen.getByText('24 in stock')).toBeVisible()
  expect(screen.getByText('Peppery, with a smell of apricots.')).toBeVisible()
  expect(document.title).toBe('Chanterelles, 250 g · Forage')
})

test('other products of its category show below', async () => {
  await show()

  expect(await screen.findByRole('link', { name: 'Porcini' })).toBeVisible()
  expect(screen.queryByRole('link', { name: 'Chanterelles, 250 g' })).not.toBeInTheDocument()
})

test('the chosen quantity is added to the cart', async () => {
  await show()
  await screen.findByText('24 in stock')

  await userEvent.click(screen.getByRole('button', { name: 'One more' }))
  await userEvent.click(screen.getByRole('button', { name: 'Add to cart' }))

  expect(useCart(pinia).quantityOf(1)).toBe(2)
  expect(screen.getByRole('link', { name: '2 in your cart' })).toBeVisible()
})

test('units in the cart count against the stock', async () => {
  currentProduct = product({ stock_quantity: 2 })
  await show()
  await screen.findByText('Only 2 left')

  await userEvent.click(screen.getByRole('button', { name: 'Add to cart' }))

  expect(screen.getByRole('button', { name: 'One more' })).toHaveAttribute('aria-disabled', 'true')
  await userEvent.click(screen.getByRole('button', { name: 'Add to cart' }))
  expect(screen.getByRole('button', { name: 'All in your cart' })).toBeDisabled()
})

test('pushed changes of stock and price show and are announced', async () => {
  await show()
  await screen.findByText('24 in stock')

  pushUpdate({ stock_quantity: 0, price: '16.00' })

  expect(await screen.findByText('The price is now €16.00. Now: Sold out.')).toHaveAttribute('role', 'status')
  expect(screen.getByRole('button', { name: 'Sold out' })).toBeDisabled()
})

test('a product deactivated while open shows as no longer sold', async () => {
  await show()
  await screen.findByText('24 in stock')

  pushUpdate({ is_active: false })

  expect(await screen.findByRole('heading', { name: 'This one is no longer here' })).toBeVisible()
})

test('a product that does not exist says so', async () => {
  await show('/products/99')

  expect(await screen.findByRole('heading', { name: 'This one is no longer here' })).toBeVisible()
  expect(screen.getByRole('link', { name: 'Go to the shop' })).toBeVisible()
})

test('opening another product from here replaces the page', async () => {
  const { router } = await show('/products/99')
  await screen.findByRole('heading', { name: 'This one is no longer here' })

  await router.push('/products/1')

  expect(await screen.findByRole('heading', { name: 'Chanterelles, 250 g' })).toBeVisible()
})
