import { placeOrder } from './cart'
import { DEMO_PASSWORD, directAccess, expect, expectAccessible, logIn, test } from './support'

const DAY = 86_400_000
const ADMIN = { email: 'admin@forage.example', password: DEMO_PASSWORD }

test('a customer gets neither the back office nor its code', async ({ page, customer }) => {
  const loaded: string[] = []
  page.on('request', (request) => loaded.push(request.url()))
  await logIn(page, customer)

  await page.goto('/admin/orders')

  await expect(page.getByRole('heading', { level: 1 })).toContainText(/no path/i)
  expect(loaded.filter((url) => /admin/i.test(new URL(url).pathname.split('/assets/')[1] ?? ''))).toEqual([])
})

test('a product is created, errors show beside the fields, and a stale edit shows both versions', async ({
  page,
  admin,
}) => {
  const sku = `OFFICE-${Date.now()}`
  await logIn(page, ADMIN)
  await page.goto('/admin/products/new')
  await page.getByLabel('Name').fill('Saffron milk caps')
  await page.getByLabel('SKU').fill(sku)
  await page.getByLabel(/^Price/).fill('-3')
  await page.getByLabel(/stock/i).fill('7')
  await page
    .getByRole('main')
    .getByRole('button', { name: /create|save/i })
    .click()
  await expect(page.getByLabel(/^Price/)).toHaveAttribute('aria-invalid', 'true')
  await expectAccessible(page)
  await page.getByLabel(/^Price/).fill('13.20')
  await page
    .getByRole('main')
    .getByRole('button', { name: /create|save/i })
    .click()
  await expect(page).toHaveURL(/\/admin\/products(\/\d+)?$/)

  const { items } = await admin.send<{ items: { id: number; sku: string }[] }>(
    'GET',
    '/products?name=Saffron&sort_by=-created_at',
  )
  const id = items.find((item) => item.sku === sku)!.id
  await page.goto(`/admin/products/${id}`)
  await page.getByLabel('Name').fill('Saffron milk caps, 200 g')
  await admin.send('PATCH', `/products/${id}`, { price: '14.00' })
  await page.getByRole('main').getByRole('button', { name: /save/i }).first().click()

  const conflict = page.getByRole('dialog', { name: /another admin has saved/i })
  await expect(conflict).toContainText(/14[.,]00/)
  await expect(conflict).toContainText('Saffron milk caps, 200 g')
  await expectAccessible(page)
})

test('a failed mail is retried and reaches its customer', async ({ page, admin, customer, newProduct, mailTo }) => {
  const { id } = await placeOrder(customer.api, await newProduct())
  await mailTo(customer.email, /order/i)
  await expect
    .poll(
      async () =>
        (await customer.api.send<{ notifications: { status: string }[] }>('GET', `/notifications?order_id=${id}`))
          .notifications[0]?.status,
    )
    .toBe('sent')
  directAccess(
    'sql',
    'notifications',
    `UPDATE notifications SET status = 'failed', error_message = '550 no such box' WHERE order_id = ${id}`,
  )

  await logIn(page, ADMIN)
  await page.goto(`/admin/notifications?status=failed&recipient=${encodeURIComponent(customer.email)}`)
  await expect(page.getByRole('main')).toContainText('550 no such box')
  await expectAccessible(page)
  await page.getByRole('main').getByRole('button', { name: /retry/i }).last().click()

  await expect
    .poll(
      async () =>
        (await admin.send<{ notifications: { status: string }[] }>('GET', `/notifications?all=true&order_id=${id}`))
          .notifications[0]?.status,
    )
    .toBe('sent')
  await expect(page.getByRole('main').getByText('550 no such box')).toBeHidden()
})

test('an unreadable message is shown and discarded', async ({ page }) => {
  const body = `no JSON ${Date.now()}`
  directAccess('message', 'evt-orders-order.created--notifications.confirm_order', body)
  await logIn(page, ADMIN)

  const message = page.getByRole('article').filter({ hasText: body })
  await expect(async () => {
    await page.goto('/admin/parked')
    await expect(message).toBeVisible({ timeout: 10_000 })
  }).toPass({ timeout: 90_000 })
  await message.getByText('Payload').click()
  await expect(message.getByText(body)).toBeVisible()
  await expectAccessible(page)

  await message.getByRole('button', { name: /discard/i }).click()
  await page
    .getByRole('dialog')
    .getByRole('button', { name: /discard/i })
    .click()
  await expect(message).toHaveCount(0)
})

test('the dashboard counts an order placed today', async ({ page, admin, customer, newProduct }) => {
  // Not shortly before the end of a UTC day, when the figures start over.
  await expect.poll(() => Date.now() % DAY, { timeout: 90_000 }).toBeLessThan(DAY - 60_000)
  const today = async () =>
    (await admin.send<{ orders: { today: { orders: number; revenue: string } } }>('GET', '/admin/summary?days=1'))
      .orders.today
  const before = await today()
  await placeOrder(customer.api, await newProduct({ price: '123.00' }))
  await logIn(page, ADMIN)

  await page.goto('/admin')

  // Other tests place orders, too.
  const figure = async (name: RegExp) =>
    Number((await page.getByRole('link', { name }).innerText()).replace(/[^\d.]/g, ''))
  await expect.poll(() => figure(/^orders today/i)).toBeGreaterThan(before.orders)
  await expect.poll(() => figure(/^revenue today/i)).toBeGreaterThanOrEqual(Number(before.revenue) + 123)
})

test('an admin finds a user and makes them an admin', async ({ page, admin, customer }) => {
  await logIn(page, ADMIN)
  await page.goto(`/admin/users?q=${encodeURIComponent(customer.email)}`)

  await page
    .getByRole('row')
    .or(page.getByRole('listitem'))
    .filter({ hasText: customer.email })
    .getByRole('button', { name: /admin/i })
    .click()
  await page.getByRole('dialog').getByRole('button', { name: /admin/i }).click()
  await expect(page.getByRole('dialog')).toBeHidden()

  const { items } = await admin.send<{ items: { role: string }[] }>(
    'GET',
    `/users?q=${encodeURIComponent(customer.email)}`,
  )
  expect(items[0]?.role).toBe('admin')
})
