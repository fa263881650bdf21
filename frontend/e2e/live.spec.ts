import type { WebSocketRoute } from '@playwright/test'
import { placeOrder } from './cart'
import { expect, logIn, tabTo, test } from './support'

test("an order shipped by an admin shows at once in its customer's window", async ({
  page,
  browser,
  admin,
  customer,
  newProduct,
}) => {
  const { id } = await placeOrder(customer.api, await newProduct())
  await admin.send('PATCH', `/orders/${id}/status`, { status: 'confirmed' })
  await logIn(page, customer)
  await page.goto(`/orders/${id}`)
  await expect(page.getByRole('main')).toContainText('Confirmed')

  // By keyboard only.
  const office = await (await browser.newContext({ baseURL: process.env.SHOP_URL })).newPage()
  await logIn(office, { email: 'admin@forage.example', password: 'chanterelle' })
  for (const link of [
    office.getByRole('link', { name: 'Back office' }),
    office.getByRole('navigation', { name: 'Back office' }).getByRole('link', { name: 'Orders' }),
    office.getByRole('link', { name: new RegExp(`^\\D*${id}$`) }),
  ]) {
    await tabTo(office, link)
    await office.keyboard.press('Enter')
  }
  await tabTo(office, office.getByRole('button', { name: /ship/i }))
  await office.keyboard.press('Enter')

  await expect(page.getByRole('main')).toContainText('Shipped')
  await expect(
    page
      .getByRole('status')
      .or(page.getByRole('alert'))
      .or(page.getByRole('listitem'))
      .filter({ hasText: /shipped/i })
      .first(),
  ).toBeVisible()
  await expect(page.getByRole('button', { name: /cancel/i })).toBeHidden()
  await office.context().close()
})

test('the stock updates without a reload', async ({ page, admin, newProduct }) => {
  const product = await newProduct({ stock_quantity: 9 })
  const isWatched = new Promise<unknown>((watched) =>
    page.on('websocket', (socket) => {
      socket.on('framesent', ({ payload }) => String(payload).includes(`${product.id}`) && watched(payload))
    }),
  )
  await page.goto(`/products/${product.id}`)
  await expect(page.getByRole('button', { name: 'Add to cart' }).first()).toBeEnabled()
  await isWatched

  await admin.send('PATCH', `/products/${product.id}/stock`, { stock_quantity: 3 })
  await expect(page.getByRole('main')).toContainText(/only 3 left/i)

  await admin.send('PATCH', `/products/${product.id}/stock`, { stock_quantity: 0 })
  await expect(page.getByRole('main')).toContainText(/sold out/i)
})

test('a notification missed during an outage of the feed shows once, in one tab', async ({
  page,
  context,
  admin,
  customer,
  newProduct,
}) => {
  const { id } = await placeOrder(customer.api, await newProduct())
  let isDown = false
  const sockets: WebSocketRoute[] = []
  await context.routeWebSocket('**/ws/**', async (socket) => {
    if (isDown) return socket.close()
    sockets.push(socket)
    socket.connectToServer()
  })
  await logIn(page, customer)
  const tabs = [page, await context.newPage()]
  for (const tab of tabs) {
    // The tab must have read the newest notification before the outage.
    const knowsNewest = tab.waitForResponse((answer) => new URL(answer.url()).search === '?page_size=1')
    await tab.goto('/notifications')
    await knowsNewest
  }
  const rows = page.getByRole('main').getByText(/confirmed/i)
  const toasts = async () => {
    const counts = await Promise.all(
      tabs.map((tab) =>
        tab
          .locator('[data-toasts] li')
          .filter({ hasText: /confirmed/i })
          .count(),
      ),
    )
    return counts.reduce((sum, count) => sum + count)
  }

  isDown = true
  for (const socket of sockets) await socket.close()
  await admin.send('PATCH', `/orders/${id}/status`, { status: 'confirmed' })
  await expect
    .poll(async () => (await customer.api.send<{ total: number }>('GET', `/notifications?order_id=${id}`)).total)
    .toBe(2)
  await expect(rows).toHaveCount(0)
  const catchUps = tabs.map((tab) =>
    tab.waitForResponse((answer) => answer.url().includes('after_id='), { timeout: 40_000 }),
  )
  isDown = false

  await Promise.all(catchUps)
  await expect(rows.first()).toBeVisible()
  await expect.poll(toasts).toBe(1)
  // Waits for every tab that is still showing a toast: they share this lock.
  const { id: userId } = await customer.api.send<{ id: number }>('GET', '/users/me')
  for (const tab of tabs)
    await tab.evaluate((name) => navigator.locks.request(name, () => {}), `forage.toasted.${userId}`)
  expect(await toasts()).toBe(1)
  for (const tab of tabs) await tab.reload()
  await expect(rows.first()).toBeVisible()
  expect(await toasts()).toBe(0)
})

test('being offline is announced until the network is back', async ({ page, context }) => {
  await page.goto('/')
  await expect(page.getByRole('heading', { level: 1 })).toBeVisible()

  await context.setOffline(true)
  await expect(page.getByText(/you are offline/i)).toBeVisible()

  await context.setOffline(false)
  await expect(page.getByText(/you are offline/i)).toBeHidden()
})

test('an expired token is refreshed once for all requests of two tabs', async ({
  page,
  context,
  customer,
  newProduct,
}) => {
  await placeOrder(customer.api, await newProduct())
  const other = await context.newPage()
  await logIn(page, customer)
  await other.goto('/orders')
  await expect(other.getByRole('button', { name: 'Account', exact: true })).toBeVisible()
  let refreshes = 0
  let expired: string | undefined
  context.on('request', (request) => (refreshes += Number(request.url().endsWith('/auth/refresh'))))
  await context.route('**/api/**', async (route) => {
    const headers = route.request().headers()
    expired ??= headers.authorization
    const isOld = expired !== undefined && headers.authorization === expired
    await route.continue({ headers: isOld ? { ...headers, authorization: 'Bearer expired' } : headers })
  })

  await Promise.all([page, other].map((tab) => tab.getByRole('link', { name: 'Orders', exact: true }).click()))
  await Promise.all([page, other].map((tab) => tab.getByRole('link', { name: 'Delivered' }).click()))

  for (const tab of [page, other]) {
    await expect(tab).toHaveURL(/\/orders\?status=delivered/)
    await expect(tab.getByRole('main')).toContainText(/no order|nothing/i)
    await expect(tab.getByRole('button', { name: 'Account', exact: true })).toBeVisible()
  }
  expect(refreshes).toBe(1)
})
