import { createOrder, pages, visit } from './pages'
import { DEMO_PASSWORD, expect, expectAccessible, logIn, scrollsSideways, test } from './support'

const ACCOUNTS = { customer: 'ada@forage.example', admin: 'admin@forage.example' }
// The last width stays for the next page.
const WIDTHS = [360, 1920, 1280]

test.describe.configure({ timeout: 600_000 })

for (const role of ['guest', 'customer', 'admin'] as const) {
  test(`every page of the ${role} is accessible, fits the window and respects the content security policy`, async ({
    page,
    guest,
  }) => {
    const ada = await guest.as(ACCOUNTS.customer, DEMO_PASSWORD)
    const entries = pages(await createOrder(ada, 1)).filter((entry) => entry.role === role)
    if (role !== 'guest') await logIn(page, { email: ACCOUNTS[role], password: DEMO_PASSWORD })
    if (role === 'customer') {
      await visit(page, '/products/2')
      await page.getByRole('button', { name: 'Add to cart' }).first().click()
    }

    const wide: string[] = []
    const violations: string[] = []
    page.on(
      'console',
      (message) =>
        message.type() === 'error' &&
        /content security policy/i.test(message.text()) &&
        violations.push(message.text()),
    )
    for (const { name, path } of entries) {
      await test.step(name, async () => {
        await visit(page, path)
        await expectAccessible(page)
        // German has longer words.
        for (const language of ['de', 'en']) {
          await page.getByLabel(/^(Language|Sprache)/).selectOption(language)
          await expect(page.locator('html')).toHaveAttribute('lang', language)
          for (const width of WIDTHS) {
            await page.setViewportSize({ width, height: 800 })
            if (await scrollsSideways(page)) wide.push(`${name}, ${language}, ${width} px`)
          }
        }
      })
    }
    expect(wide).toEqual([])
    expect(violations).toEqual([])
    expect(entries.length).toBeGreaterThan(5)
  })
}
