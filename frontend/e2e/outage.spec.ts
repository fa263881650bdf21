import { expect, killGateway, logIn, test } from './support'

test('the pages wait for a killed gateway', async ({ page, customer, newProduct }) => {
  const product = await newProduct()
  await logIn(page, customer)

  killGateway()
  await page.goto(`/products/${product.id}`)

  await expect(page.getByRole('heading', { name: product.name })).toBeVisible({ timeout: 40_000 })
  await expect(page.getByRole('button', { name: 'Account', exact: true })).toBeVisible({ timeout: 40_000 })
})
