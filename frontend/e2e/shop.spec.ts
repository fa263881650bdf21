import { gzipSync } from 'node:zlib'
import { pages, something, visit } from './pages'
import { DEMO_PASSWORD, expect, logIn, test } from './support'

const FIRST_PAGE_KB = 120

test('what one looks for is in the address, and going back finds the place', async ({ page }) => {
  await visit(page, '/')
  await page.getByRole('searchbox').fill('porcini')
  await expect(page).toHaveURL(/q=porcini/)
  await expect(page.getByRole('link', { name: /porcini, 250 g/i }).first()).toBeVisible()
  await expect(page.getByRole('link', { name: /willow/i })).toHaveCount(0)

  await visit(page, '/')
  const last = page.getByRole('main').locator('a[href^="/products/"]').last()
  await last.scrollIntoViewIfNeeded()
  const before = await page.evaluate(() => scrollY)
  await last.click()
  await expect(page).toHaveURL(/\/products\//)
  await page.goBack()

  await expect.poll(() => page.evaluate(() => scrollY)).toBeGreaterThan(before - 50)
})

test('the first page is light, and its files are kept for ever', async ({ page }) => {
  const scripts: { url: string; bytes: number; kept: string }[] = []
  page.on('response', async (response) => {
    if (response.request().resourceType() !== 'script') return
    const url = response.url()
    scripts.push({ url, bytes: gzipSync(await response.body()).length, kept: response.headers()['cache-control'] ?? '' })
  })

  await visit(page, '/')

  const kilobytes = scripts.reduce((sum, { bytes }) => sum + bytes, 0) / 1000
  expect(kilobytes, scripts.map(({ url, bytes }) => `${bytes} ${url}`).join('\n')).toBeLessThan(FIRST_PAGE_KB)
  const hashed = scripts.filter(({ url }) => url.includes('/assets/'))
  expect(hashed.length).toBeGreaterThan(0)
  expect(hashed.filter(({ kept }) => !kept.includes('immutable'))).toEqual([])
})

test('the policy for scripts and styles is kept on every page', async ({ page }) => {
  const broken: string[] = []
  page.on('console', (message) => message.type() === 'error' && /content security policy/i.test(message.text()) && broken.push(message.text()))

  for (const path of ['/', '/products/1', '/login', '/register', '/cart']) await visit(page, path)

  expect(broken).toEqual([])
})

for (const [width, locale] of [
  [360, 'de-DE'],
  [1920, 'en-GB'],
] as const) {
  test(`no page has to be scrolled sideways at ${width} px, in ${locale}`, async ({ browser, anybody }) => {
    test.setTimeout(120_000)
    const ids = await something(await anybody.as('ada@forage.example', DEMO_PASSWORD), 1)
    const wide: string[] = []

    for (const [who, email] of Object.entries({ anybody: null, customer: 'ada@forage.example', admin: 'admin@forage.example' })) {
      const context = await browser.newContext({ baseURL: process.env.SHOP_URL, viewport: { width, height: 800 }, locale: 'en-GB' })
      const page = await context.newPage()
      if (email) await logIn(page, { email, password: DEMO_PASSWORD })
      const language = locale.slice(0, 2)
      await context.addInitScript((chosen) => localStorage.setItem('forage.locale', chosen), language)
      for (const { name, path } of pages(ids).filter((entry) => entry.who === who)) {
        await visit(page, path)
        await expect(page.locator('html')).toHaveAttribute('lang', language)
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)
        if (overflow > 0) wide.push(`${name}: ${overflow} px`)
      }
      await context.close()
    }

    expect(wide).toEqual([])
  })
}

test('language and colours are chosen, and stay so', async ({ page }) => {
  await visit(page, '/')
  await page.getByLabel('Language').selectOption('de')
  await expect(page.locator('html')).toHaveAttribute('lang', 'de')
  await page.getByLabel('Farben').selectOption('dark')

  await page.reload()

  await expect(page.locator('html')).toHaveAttribute('lang', 'de')
  await expect(page.locator('html')).toHaveClass(/dark/)
  await expect(page.getByRole('link', { name: 'Laden', exact: true })).toBeVisible()
})

test('without a network the page stays, and the page one asked for comes with it', async ({ page, context, newProduct }) => {
  const product = await newProduct()
  await visit(page, `/products/${product.id}`)

  await context.setOffline(true)
  await page.getByRole('button', { name: 'Add to cart', exact: true }).click()
  await expect(page.getByRole('link', { name: /1 in your cart/ })).toBeVisible()
  await expect(page.getByRole('heading', { name: product.name })).toBeVisible()
  await page.getByRole('link', { name: /^Cart/ }).click()
  await expect(page.getByRole('main').getByRole('alert')).toContainText('No answer came')

  await context.setOffline(false)
  await expect(page.getByRole('heading', { name: 'Your cart' })).toBeVisible()
  await expect(page.getByRole('main')).toContainText(product.name)
})

test('a browser that keeps nothing shops and logs in all the same', async ({ page, newProduct, customer }) => {
  await page.addInitScript(() => {
    Object.defineProperty(window, 'localStorage', {
      get() {
        throw new DOMException('Access is denied for this document.', 'SecurityError')
      },
    })
  })
  const product = await newProduct()

  await logIn(page, customer)
  await page.getByRole('searchbox').fill(product.name)
  await page.getByRole('link', { name: product.name }).click()
  await page.getByRole('button', { name: 'Add to cart', exact: true }).click()
  await page.getByRole('link', { name: /^Cart/ }).click()
  await page.getByRole('button', { name: /checkout/i }).click()
  await page.getByRole('button', { name: 'Place the order' }).click()

  await expect(page).toHaveURL(/\/orders\/\d+/)
})

test('no name is too long for a phone', async ({ browser, newProduct, customer }) => {
  const product = await newProduct({ name: 'm'.repeat(200), category: 'c'.repeat(100), price: '9999999999.99' })
  const context = await browser.newContext({ baseURL: process.env.SHOP_URL, viewport: { width: 360, height: 740 }, locale: 'en-GB' })
  const page = await context.newPage()
  await logIn(page, customer)
  await visit(page, `/products/${product.id}`)
  await page.getByRole('button', { name: 'Add to cart', exact: true }).click()
  const wide: string[] = []

  for (const path of [`/products/${product.id}`, '/cart', '/checkout']) {
    await visit(page, path)
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)
    if (overflow > 0) wide.push(`${path}: ${overflow} px`)
  }

  await context.close()
  expect(wide).toEqual([])
})
