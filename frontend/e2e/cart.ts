import { expect, type Page } from '@playwright/test'
import type { Api, Product } from './support'

/** Adds a product on its page, then opens the cart. */
export async function addToCart(page: Page, product: Product, quantity: number) {
  await page.goto(`/products/${product.id}`)
  await page.getByRole('textbox', { name: 'Quantity' }).fill(String(quantity))
  await page.getByRole('button', { name: 'Add to cart', exact: true }).click()
  await page.goto('/cart')
  await expect(page.getByRole('main')).toContainText(product.name)
}

export const placeOrder = (api: Api, product: Product, quantity = 1) =>
  api.send<{ id: number }>('POST', '/orders', { items: [{ product_id: product.id, quantity }] })
