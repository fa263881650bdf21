import { pages, something, visit } from './pages'
import { DEMO_PASSWORD, expect, expectAccessible, logIn, test } from './support'

const ACCOUNTS = { customer: 'ada@forage.example', admin: 'admin@forage.example' }

test.describe.configure({ timeout: 180_000 })

for (const who of ['anybody', 'customer', 'admin'] as const) {
  test(`no page of ${who} is a barrier`, async ({ page, anybody }) => {
    const ada = await anybody.as(ACCOUNTS.customer, DEMO_PASSWORD)
    const entries = pages(await something(ada, 1)).filter((entry) => entry.who === who)
    if (who !== 'anybody') await logIn(page, { email: ACCOUNTS[who], password: DEMO_PASSWORD })
    if (who === 'customer') {
      await visit(page, '/products/2')
      await page.getByRole('button', { name: 'Add to cart' }).first().click()
    }

    for (const { name, path } of entries) {
      await test.step(name, async () => {
        await visit(page, path)
        await expectAccessible(page)
      })
    }
    expect(entries.length).toBeGreaterThan(5)
  })
}
