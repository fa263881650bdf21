import { expect, expectAccessible, linkIn, logIn, PASSWORD, test } from './support'

test('a new customer registers, verifies the address, buys and opens the order from the mail', async ({
  page,
  newProduct,
  mailTo,
}) => {
  const product = await newProduct({ price: '12.50', stock_quantity: 8 })
  const email = `cora-${Date.now()}@forage.example`

  await page.goto('/register')
  await page.getByLabel('Email').fill(email)
  await page.getByLabel(/name/i).fill(`cora ${Date.now()}`)
  await page.getByLabel('Password', { exact: true }).fill(PASSWORD)
  await page.getByRole('main').getByRole('button', { name: 'Create account' }).click()
  await expect(page.getByRole('button', { name: 'Account', exact: true })).toBeVisible()

  await page.goto(linkIn(await mailTo(email, /verify|welcome|confirm/i), '/verify-email'))
  await expect(page.getByRole('main')).toContainText(/verified|proved|confirmed/i)
  await expect(page).not.toHaveURL(/token/)
  await expectAccessible(page)

  await page.goto('/')
  await page.getByRole('searchbox').fill(product.name)
  await page.getByRole('link', { name: product.name }).first().click()
  await page.getByRole('button', { name: 'Add to cart', exact: true }).click()
  await page.getByRole('link', { name: /^Cart/ }).first().click()
  await page.getByRole('button', { name: 'Go to the checkout' }).click()
  await expectAccessible(page)
  await page.getByRole('button', { name: 'Place the order' }).click()

  await expect(page).toHaveURL(/\/orders\/\d+/)
  await expect(page.getByRole('main')).toContainText('€12.50')
  await expectAccessible(page)
  const order = await mailTo(email, /order/i)
  await page.goto(linkIn(order, '/orders/'))
  await expect(page.getByRole('main')).toContainText(product.name)
  await expect(page.getByRole('main')).toContainText('Pending')
})

test('a forgotten password is reset by mail, and every session ends', async ({ page, browser, customer, mailTo }) => {
  const otherDevice = await (await browser.newContext({ baseURL: process.env.SHOP_URL })).newPage()
  await logIn(otherDevice, customer)

  await page.goto('/login')
  await page.getByRole('link', { name: /forgot/i }).click()
  // The login page has an email field too.
  await expect(page.getByRole('heading', { name: /forgot/i })).toBeVisible()
  await page.getByLabel('Email').fill(customer.email)
  await page.getByRole('main').getByRole('button').last().click()
  await page.goto(linkIn(await mailTo(customer.email, /password/i), '/reset-password'))
  await expect(page).not.toHaveURL(/token/)
  await page.getByLabel('New password', { exact: true }).fill('a walk by the sea')
  await page
    .getByRole('main')
    .getByRole('button', { name: /password/i })
    .last()
    .click()
  await expect(page).toHaveURL(/\/login/)

  await logIn(page, { ...customer, password: 'a walk by the sea' })
  await otherDevice.goto('/account')
  await expect(otherDevice).toHaveURL(/\/login\?next=/)
  await otherDevice.context().close()
})

test('a session on another device is ended', async ({ page, browser, customer }) => {
  const userAgent = 'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0'
  const otherDevice = await (await browser.newContext({ baseURL: process.env.SHOP_URL, userAgent })).newPage()
  await logIn(otherDevice, customer)
  await logIn(page, customer)

  await page.goto('/account')
  await page.getByRole('button', { name: /log out there: firefox/i }).click()
  await page
    .getByRole('dialog')
    .getByRole('button', { name: /log out/i })
    .click()
  await expect(page.getByRole('dialog')).toBeHidden()
  await otherDevice.goto('/orders')

  await expect(otherDevice).toHaveURL(/\/login\?next=/)
  await page.reload()
  await expect(page).toHaveURL(/\/account/)
  await otherDevice.context().close()
})

test('signing in at the provider leads back to the requested page', async ({ page }) => {
  await page.goto('/orders')
  await expect(page).toHaveURL(/\/login\?next=/)
  await page.getByRole('link', { name: /google/i }).click()
  await page.getByRole('button', { name: 'cleo-is-new' }).click()

  await expect(page).toHaveURL(/\/orders$/)
  await expect(page.getByRole('button', { name: 'Account', exact: true })).toBeVisible()
})

test('an unverified address at the provider is explained in the shop', async ({ page }) => {
  await page.goto('/login')
  await page.getByRole('link', { name: /google/i }).click()
  await page.getByRole('button', { name: 'bo-unverified' }).click()

  await expect(page).toHaveURL(/\/(auth\/callback|login)/)
  await expect(page.getByRole('main')).toContainText(/has not verified your address/i)
})
