import { expect, test } from 'vitest'
import { jsonResponse, problemResponse, stubNetwork } from '@/testing/api'
import { listOrders } from './orders'
import { listCategories } from './products'

const JSON_TYPE = { 'Content-Type': 'application/json' }

test('an answer that breaks off on the way is none', async () => {
  const broken = new ReadableStream({ start: (body) => body.error(new TypeError('network error')) })
  stubNetwork(() => new Response(broken, { headers: JSON_TYPE }))

  await expect(listCategories()).rejects.toMatchObject({ type: 'network', isTransient: true })
})

test('an answer that stalls on the way is none', async () => {
  const stalled = new ReadableStream({ start: (body) => body.error(new DOMException('', 'TimeoutError')) })
  stubNetwork(() => new Response(stalled, { headers: JSON_TYPE }))

  await expect(listCategories()).rejects.toMatchObject({ type: 'network', isTransient: true })
})

test('a page that stands between the browser and the shop is no answer', async () => {
  stubNetwork(() => new Response('<h1>Welcome to the hotel</h1>', { headers: { 'Content-Type': 'text/html' } }))

  await expect(listCategories()).rejects.toMatchObject({ type: 'network' })
})

test('a refusal names its type, and is tried again only if it may pass', async () => {
  stubNetwork(() => problemResponse('access-denied', 403))

  await expect(listCategories()).rejects.toMatchObject({ type: 'access-denied', status: 403, isTransient: false })
})

test('what nobody waits for any more is no problem of the network', async () => {
  stubNetwork(() => Promise.reject(new DOMException('The user aborted a request.', 'AbortError')))

  await expect(listCategories()).rejects.toMatchObject({ name: 'AbortError' })
})

test('how many there are in all comes with a page of them', async () => {
  stubNetwork(() => jsonResponse([], 200, { 'X-Total-Count': '31' }))

  expect(await listOrders({})).toEqual({ orders: [], total: 31 })
})
