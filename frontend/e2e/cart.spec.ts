import { expect, expectAccessible, logIn, tabTo, test } from './support'
import { addToCart, placeOrder } from './cart'

// The checkout's automatic tries.
const TRIES = 3

test('a product that sells out in the cart says so at once and is fixed with a click', async ({
  page,
  admin,
  newProduct,
}) => {
  const product = await newProduct({ stock_quantity: 5 })
  await addToCart(page, product, 3)

  await admin.send('PATCH', `/products/${product.id}/stock`, { stock_quantity: 1 })

  await expect(page.getByRole('main')).toContainText(/only 1/i)
  await expectAccessible(page)
  await page.getByRole('button', { name: /set to 1|take 1/i }).click()
  await expect(page.getByRole('main')).toContainText('€10.00')

  await admin.send('PATCH', `/products/${product.id}/stock`, { stock_quantity: 0 })
  await expect(page.getByRole('main')).toContainText(/sold out/i)
})

test('a refusal at the checkout names the short product and offers to fix the cart', async ({
  page,
  admin,
  customer,
  newProduct,
}) => {
  const product = await newProduct({ stock_quantity: 5 })
  // Without the feed the page doesn't learn of the change.
  await page.routeWebSocket('**/ws/**', () => {})
  await logIn(page, customer)
  await addToCart(page, product, 4)
  await page.goto('/checkout')
  const place = page.getByRole('button', { name: 'Place the order' })
  await expect(place).toBeEnabled()

  await admin.send('PATCH', `/products/${product.id}/stock`, { stock_quantity: 2 })
  await place.click()

  await expect(page.getByRole('alert')).toContainText(`Only 2 of “${product.name}” are left, you asked for 4.`)
  await expectAccessible(page)
  await page.getByRole('button', { name: /set to 2|take 2/i }).click()
  await place.click()
  await expect(page).toHaveURL(/\/orders\/\d+/)
})

test('an order whose answer was lost is placed once', async ({ page, customer, newProduct }) => {
  const product = await newProduct()
  await logIn(page, customer)
  await addToCart(page, product, 1)
  await page.goto('/checkout')
  let lost = 0
  await page.route('**/api/orders', async (route) => {
    if (route.request().method() !== 'POST' || ++lost > TRIES) return route.fallback()
    await route.fetch()
    await route.abort('connectionreset')
  })

  await page.getByRole('button', { name: 'Place the order' }).click()
  await expect(page.getByRole('main')).toContainText(/no clear answer came/i, { timeout: 60_000 })
  await page.reload()
  await page.getByRole('button', { name: 'Place the order' }).click()

  await expect(page).toHaveURL(/\/orders\/\d+/)
  expect(await customer.api.send('GET', '/orders')).toHaveLength(1)
})

test('a double click makes one order', async ({ page, customer, newProduct }) => {
  await logIn(page, customer)
  await addToCart(page, await newProduct(), 1)
  await page.goto('/checkout')

  await page.getByRole('button', { name: 'Place the order' }).dblclick()

  await expect(page).toHaveURL(/\/orders\/\d+/)
  expect(await customer.api.send('GET', '/orders')).toHaveLength(1)
})

test("two tabs share the cart, and logging in keeps the guest's items", async ({
  page,
  context,
  customer,
  newProduct,
}) => {
  const [first, second] = [await newProduct(), await newProduct()]
  await placeOrder(customer.api, first)
  const other = await context.newPage()
  await other.goto('/cart')

  await addToCart(page, first, 2)
  await expect(other.getByRole('main')).toContainText(first.name)
  await addToCart(other, second, 1)
  await expect(page.getByRole('main')).toContainText(second.name)

  await logIn(page, customer)
  await page.goto('/cart')
  await expect(page.getByRole('main')).toContainText(first.name)
  await expect(other.getByRole('button', { name: 'Account', exact: true })).toBeVisible()
  await expect(other.getByRole('main')).toContainText(second.name)
  await page.reload()
  await expect(page.getByRole('main')).toContainText(second.name)
})

test('a purchase works by keyboard alone', async ({ page, customer, newProduct }) => {
  const product = await newProduct()
  const { keyboard } = page
  await page.goto('/')

  await tabTo(page, page.getByRole('searchbox'))
  await keyboard.type(product.name)
  await expect(page).toHaveURL(/q=/)
  await tabTo(page, page.getByRole('main').getByRole('link', { name: product.name }).first())
  await keyboard.press('Enter')
  await expect(page).toHaveURL(/\/products\//)
  await expect(page.getByRole('heading', { level: 1 })).toBeFocused()
  await tabTo(page, page.getByRole('button', { name: 'Add to cart', exact: true }))
  await keyboard.press('Enter')
  await tabTo(page, page.getByRole('link', { name: /^Cart/ }))
  await keyboard.press('Enter')
  await tabTo(page, page.getByRole('button', { name: 'Go to the checkout' }))
  await keyboard.press('Enter')
  await expect(page).toHaveURL(/\/login/)
  await tabTo(page, page.getByLabel('Email'))
  await keyboard.type(customer.email)
  await tabTo(page, page.getByLabel('Password', { exact: true }))
  await keyboard.type(customer.password)
  await keyboard.press('Enter')
  await expect(page).toHaveURL(/\/checkout/)
  await tabTo(page, page.getByRole('button', { name: 'Place the order' }))
  await keyboard.press('Enter')
  await expect(page).toHaveURL(/\/orders\/\d+/)
  await tabTo(page, page.getByRole('button', { name: /cancel/i }))
  await keyboard.press('Enter')
  await expect(page.getByRole('dialog')).toBeVisible()
  await keyboard.press('Escape')
  await expect(page.getByRole('dialog')).toBeHidden()
  await expect(page.getByRole('button', { name: /cancel/i })).toBeFocused()
})
