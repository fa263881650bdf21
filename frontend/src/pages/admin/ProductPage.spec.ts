import { screen, waitFor, within } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { beforeAll, beforeEach, expect, test } from 'vitest'
import type { Product } from '@/api/client'
import { loadAdminMessages, setLocale } from '@/i18n'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, product, stubNetwork } from '@/testing/api'
import ProductPage from './ProductPage.vue'

beforeAll(loadAdminMessages)

let stored: Product
let version: number
let sent: { path: string; body: Record<string, unknown>; ifMatch: string | null }[]
let refuse: (() => Response) | null
let arrival: Promise<void>
const withTag = (status = 200) => jsonResponse(stored, status, { ETag: `"${version}-x"` })

/** Another admin saves. */
function edit(changes: Partial<Product>) {
  stored = { ...stored, ...changes }
  version++
}

beforeEach(() => {
  stored = product()
  version = 1
  sent = []
  refuse = null
  arrival = Promise.resolve()
  stubNetwork(async (request, path) => {
    if (path === '/api/products/categories') return jsonResponse([{ category: 'Fresh', count: 1 }])
    if (request.method === 'GET') return withTag()
    const body = await request.json()
    const ifMatch = request.headers.get('If-Match')
    sent.push({ path, body, ifMatch })
    await arrival
    if (refuse) return refuse()
    if (ifMatch && ifMatch !== '*' && ifMatch !== `"${version}-x"`) return problemResponse('stale-version', 412)
    edit(body)
    return withTag(request.method === 'POST' ? 201 : 200)
  })
})

async function show(at = '/admin/products/1') {
  const shown = await renderInApp(ProductPage, { at })
  await screen.findByLabelText('Name')
  return shown
}

async function write(label: string | RegExp, text: string) {
  const field = screen.getByLabelText(label)
  await userEvent.clear(field)
  if (text) await userEvent.type(field, text)
}
const save = () => userEvent.click(screen.getByRole('button', { name: 'Save' }))

test('an invalid field shows its error, and nothing is sent', async () => {
  await show('/admin/products/new')
  await write('Name', 'ab\u200b')
  await write('Price in euros', '-1')
  await write(/^SKU/, 'x'.repeat(65))
  await write(/^Description/, 'soft\u00adhyphen')
  await write(/^Picture/, 'javascript:alert(1)')
  await write('Stock', '-1')

  await userEvent.click(screen.getByRole('button', { name: 'Create product' }))

  expect(screen.getByLabelText('Name')).toHaveAccessibleDescription('It must be one line of visible characters.')
  expect(screen.getByLabelText('Price in euros')).toHaveAccessibleDescription(/A price looks like 12\.50\./)
  expect(screen.getByLabelText(/^SKU/)).toHaveAccessibleDescription(/It may have 64 characters at most\./)
  expect(screen.getByLabelText(/^Description/)).toHaveAccessibleDescription(/an invisible character/)
  expect(screen.getByLabelText(/^Picture/)).toHaveAccessibleDescription(/It must begin with https/)
  expect(screen.getByLabelText('Stock')).toHaveAccessibleDescription('Enter a whole number, 0 or more.')
  expect(screen.getByLabelText('Name')).toHaveFocus()
  expect(sent).toEqual([])
})

test('a new product is created as typed, and its page opens', async () => {
  const { router } = await show('/admin/products/new')
  await write('Name', ' Morels ')
  await write('Price in euros', '9,5')
  await write(/^SKU/, 'fre-morel')
  await write('Stock', '12')

  await userEvent.click(screen.getByRole('button', { name: 'Create product' }))

  await waitFor(() => expect(router.currentRoute.value.path).toBe('/admin/products/1'))
  const nothing = { category: null, image_url: null, description: null }
  expect(sent.map(({ body }) => body)).toEqual([
    { name: 'Morels', price: '9.50', sku: 'FRE-MOREL', stock_quantity: 12, ...nothing },
  ])
})

test('a free product with a short name and no SKU is created', async () => {
  await show('/admin/products/new')
  await write('Name', '米酒')
  await write('Price in euros', '0')

  await userEvent.click(screen.getByRole('button', { name: 'Create product' }))

  await waitFor(() => expect(sent).toHaveLength(1))
  expect(sent[0]!.body).toMatchObject({ name: '米酒', price: '0.00', sku: null })
})

test('only changed fields are saved, with the version that was read', async () => {
  await show()
  await write('Price in euros', '15')

  await save()

  await waitFor(() => expect(sent).toEqual([{ path: '/api/products/1', body: { price: '15.00' }, ifMatch: '"1-x"' }]))
  await waitFor(() => expect(screen.getByRole('button', { name: 'Save' })).toBeDisabled())
})

test('text typed during a save stays and is still unsaved', async () => {
  await show()
  let arrive = () => {}
  arrival = new Promise((resolve) => (arrive = resolve))
  await write('Price in euros', '15')
  await save()
  await write('Name', 'My name')

  arrive()

  await waitFor(() => expect(screen.getByLabelText('Price in euros')).toHaveValue('15.00'))
  expect(screen.getByLabelText('Name')).toHaveValue('My name')
  expect(screen.getByText('Not saved yet')).toBeVisible()
  await save()
  await waitFor(() => expect(sent.at(-1)).toMatchObject({ body: { name: 'My name' }, ifMatch: '"2-x"' }))
})

test('an error found by the server shows beside the field in our own words', async () => {
  refuse = () => problemResponse('invalid-input', 422, { errors: { name: ['Not a good name.'] } })
  await show()
  await write('Name', 'Something')

  await save()

  await waitFor(() =>
    expect(screen.getByLabelText('Name')).toHaveAccessibleDescription(
      /^It must be 1 to 200 visible characters on one line/,
    ),
  )
  expect(screen.getByLabelText('Name')).toHaveValue('Something')
})

test('a taken SKU shows at its field', async () => {
  refuse = () => problemResponse('taken', 409, { field: 'sku' })
  await show()
  await write(/^SKU/, 'OTHER')

  await save()

  await waitFor(() =>
    expect(screen.getByLabelText(/^SKU/)).toHaveAccessibleDescription(/Another product has this SKU\./),
  )
})

test('the product that owns a taken SKU is named and linked', async () => {
  refuse = () =>
    problemResponse('taken', 409, { field: 'sku', product: { id: 9, name: 'Old morels', is_active: false } })
  await show()
  await write(/^SKU/, 'OTHER')

  await save()

  const link = await screen.findByRole('link', { name: 'Open Old morels' })
  expect(link).toHaveAttribute('href', '/admin/products/9')
  expect(screen.getByLabelText(/^SKU/)).toHaveAccessibleDescription(/Old morels has this SKU, but is not in the shop\./)
})

test('a stale edit shows both versions and saves the chosen fields on the newer one', async () => {
  await show()
  await write('Name', 'My name')
  await write('Price in euros', '20')
  edit({ name: 'Their name', description: 'Theirs alone' })

  await save()
  const dialog = within(await screen.findByRole('dialog', { name: 'Another admin has saved meanwhile' }))
  const field = (name: string) => within(dialog.getByRole('group', { name }))
  expect(field('Name').getByRole('radio', { name: 'Yours My name' })).toBeChecked()
  expect(field('Description').getByRole('radio', { name: 'Theirs, already saved Theirs alone' })).toBeChecked()
  await userEvent.click(field('Name').getByRole('radio', { name: 'Theirs, already saved Their name' }))
  await userEvent.click(dialog.getByRole('button', { name: 'Save this' }))

  await waitFor(() => expect(stored).toMatchObject({ name: 'Their name', price: '20.00', description: 'Theirs alone' }))
  expect(sent.at(-1)).toMatchObject({ body: { price: '20.00' }, ifMatch: '"2-x"' })
  await waitFor(() => expect(screen.getByLabelText('Name')).toHaveValue('Their name'))
})

test('taking all of theirs saves nothing', async () => {
  await show()
  await write('Name', 'My name')
  edit({ name: 'Their name' })

  await save()
  await userEvent.click(await screen.findByRole('button', { name: 'Take all of theirs' }))
  await userEvent.click(screen.getByRole('button', { name: 'Save this' }))

  await waitFor(() => expect(screen.getByLabelText('Name')).toHaveValue('Their name'))
  expect(sent).toHaveLength(1)
  expect(screen.getByRole('button', { name: 'Save' })).toBeDisabled()
})

test('a change of only the stock by another admin does not conflict with an edit', async () => {
  await show()
  await write('Name', 'My name')
  edit({ stock_quantity: 3 })

  await save()

  await waitFor(() => expect(stored).toMatchObject({ name: 'My name', stock_quantity: 3 }))
  expect(screen.queryByRole('dialog')).not.toBeInTheDocument()
})

test('the stock is changed by an amount without making a running edit stale', async () => {
  await show()
  await write('Name', 'My name')
  await write('Change by', '-3')

  await userEvent.click(screen.getByRole('button', { name: 'Change stock' }))
  await waitFor(() => expect(sent.at(-1)).toMatchObject({ path: '/api/products/1/stock', body: { delta: -3 } }))
  await save()

  await waitFor(() => expect(sent).toHaveLength(2))
  expect(sent[1]).toMatchObject({ body: { name: 'My name' }, ifMatch: '"2-x"' })
})

test('removing more than the stock shows how many there are', async () => {
  refuse = () => problemResponse('insufficient-stock', 409, { product_id: 1, requested: 99, available: 24 })
  await show()
  await write('Change by', '-99')

  await userEvent.click(screen.getByRole('button', { name: 'Change stock' }))

  await waitFor(() => expect(screen.getByLabelText('Change by')).toHaveAccessibleDescription(/only 24 are in stock/))
})

test('after a lost answer the stock is reread before another change', async () => {
  refuse = () => {
    edit({ stock_quantity: 44 })
    throw new TypeError('Failed to fetch')
  }
  await show()
  await write('Change by', '20')

  await userEvent.click(screen.getByRole('button', { name: 'Change stock' }))

  expect(await screen.findByText(/the stock may or may not have changed.* check it above/)).toBeVisible()
  expect(screen.getByText('44')).toBeVisible()
  expect(screen.getByLabelText('Change by')).toHaveValue('')
})

test('when the stock cannot be reread after a lost answer, the page says so', async () => {
  await show()
  await write('Change by', '20')
  stubNetwork(() => problemResponse('timeout', 504))

  await userEvent.click(screen.getByRole('button', { name: 'Change stock' }))

  expect(await screen.findByText(/the stock may or may not have changed. Reload this page/)).toBeVisible()
})

test('a stock refused by the server shows in our own words', async () => {
  refuse = () => problemResponse('invalid-input', 422, { errors: { delta: ['The stock would exceed 2147483647.'] } })
  await show()
  await write('Change by', '2147483647')

  await userEvent.click(screen.getByRole('button', { name: 'Change stock' }))

  await waitFor(() =>
    expect(screen.getByLabelText('Change by')).toHaveAccessibleDescription(/the stock would become too large/),
  )
})

test('a product is deactivated', async () => {
  await show()

  await userEvent.click(screen.getByRole('button', { name: 'Take out of the shop' }))

  expect(await screen.findByRole('button', { name: 'Put back in the shop' })).toBeVisible()
  expect(sent).toMatchObject([{ body: { is_active: false } }])
})

test('leaving with unsaved changes asks first', async () => {
  const { router } = await show()
  await write('Name', 'My name')

  void router.push('/admin/products')
  await userEvent.click(within(await screen.findByRole('dialog')).getByRole('button', { name: 'Go back' }))
  expect(router.currentRoute.value.path).toBe('/admin/products/1')
  void router.push('/admin/products')
  await userEvent.click(within(await screen.findByRole('dialog')).getByRole('button', { name: 'Leave' }))

  await waitFor(() => expect(router.currentRoute.value.path).toBe('/admin/products'))
})

test('leaving without changes asks nothing', async () => {
  const { router } = await show()

  await router.push('/admin/products')

  expect(router.currentRoute.value.path).toBe('/admin/products')
})

test('closing the window with unsaved changes asks first', async () => {
  await show()
  const close = () => {
    const event = new Event('beforeunload', { cancelable: true })
    window.dispatchEvent(event)
    return event.defaultPrevented
  }
  expect(close()).toBe(false)

  await write('Name', 'My name')

  expect(close()).toBe(true)
})

test('a price is formatted in the chosen language', async () => {
  await setLocale('de')
  try {
    await renderInApp(ProductPage, { at: '/admin/products/1' })

    expect(await screen.findByLabelText('Preis in Euro')).toHaveValue('14,50')
  } finally {
    await setLocale('en')
  }
})
