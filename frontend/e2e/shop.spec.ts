import { gzipSync } from 'node:zlib'
import { visit } from './pages'
import { expect, logIn, scrollsSideways, test } from './support'

const FIRST_PAGE_KB = 120

test('the address holds the search, and going back restores the scroll position', async ({ page }) => {
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

test('the first page is small, and its files are cached for ever', async ({ page }) => {
  const scripts: { url: string; bytes: number; kept: string }[] = []
  page.on('response', async (response) => {
    if (response.request().resourceType() !== 'script') return
    const url = response.url()
    scripts.push({
      url,
      bytes: gzipSync(await response.body()).length,
      kept: response.headers()['cache-control'] ?? '',
    })
  })

  await visit(page, '/')

  const kilobytes = scripts.reduce((sum, { bytes }) => sum + bytes, 0) / 1000
  expect(kilobytes, scripts.map(({ url, bytes }) => `${bytes} ${url}`).join('\n')).toBeLessThan(FIRST_PAGE_KB)
  const hashed = scripts.filter(({ url }) => url.includes('/assets/'))
  expect(hashed.length).toBeGreaterThan(0)
  expect(hashed.filter(({ kept }) => !kept.includes('immutable'))).toEqual([])
})

test('language and colours are kept after a reload', async ({ page }) => {
  await visit(page, '/')
  await page.getByLabel('Language').selectOption('de')
  await expect(page.locator('html')).toHaveAttribute('lang', 'de')
  await page.getByLabel('Farben').selectOption('dark')

  await page.reload()

  await expect(page.locator('html')).toHaveAttribute('lang', 'de')
  await expect(page.locator('html')).toHaveClass(/dark/)
  await expect(page.getByRole('link', { name: 'Laden', exact: true })).toBeVisible()
})

test('offline, the page stays usable, and the requested page opens once online', async ({
  page,
  context,
  newProduct,
}) => {
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

test('without storage, logging in and buying work', async ({ page, newProduct, customer }) => {
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

test("a very long name fits a phone's width", async ({ browser, newProduct, customer }) => {
  const product = await newProduct({ name: 'm'.repeat(200), category: 'c'.repeat(100), price: '9999999999.99' })
  const context = await browser.newContext({
    baseURL: process.env.SHOP_URL,
    viewport: { width: 360, height: 740 },
    locale: 'en-GB',
  })
  const page = await context.newPage()
  await logIn(page, customer)
  await visit(page, `/products/${product.id}`)
  await page.getByRole('button', { name: 'Add to cart', exact: true }).click()
  const wide: string[] = []

  for (const path of [`/products/${product.id}`, '/cart', '/checkout']) {
    await visit(page, path)
    if (await scrollsSideways(page)) wide.push(path)
  }

  await context.close()
  expect(wide).toEqual([])
})
