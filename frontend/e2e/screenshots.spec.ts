import { createOrder, pages, visit } from './pages'
import { DEMO_PASSWORD, logIn, test } from './support'

const SIZES = { phone: { width: 390, height: 844 }, desktop: { width: 1280, height: 900 } }
const ACCOUNTS = { customer: 'ada@forage.example', admin: 'admin@forage.example' }

test.describe.configure({ timeout: 300_000 })

/** Writes frontend/screenshots/<size>-<theme>/<page>.png, to be looked at. */
for (const [size, viewport] of Object.entries(SIZES)) {
  for (const colorScheme of ['light', 'dark'] as const) {
    test(`every page, ${size}, ${colorScheme}`, async ({ browser, guest }) => {
      const ids = await createOrder(await guest.as(ACCOUNTS.customer, DEMO_PASSWORD), 1)

      for (const role of ['guest', 'customer', 'admin'] as const) {
        const context = await browser.newContext({ baseURL: process.env.SHOP_URL, viewport, colorScheme })
        const page = await context.newPage()
        if (role !== 'guest') await logIn(page, { email: ACCOUNTS[role], password: DEMO_PASSWORD })
        if (role === 'customer') {
          await visit(page, '/products/2')
          await page.getByRole('button', { name: 'Add to cart' }).first().click()
        }
        for (const { name, path } of pages(ids).filter((entry) => entry.role === role)) {
          await visit(page, path)
          await page.screenshot({ path: `screenshots/${size}-${colorScheme}/${name}.png`, fullPage: true })
        }
        await context.close()
      }
    })
  }
}
