import { expect, test } from 'vitest'
import { jsonResponse, problemResponse, stubNetwork } from '@/testing/api'
import { listOrders } from './orders'
import { listCategories } from './products'

const JSON_TYPE = { 'Content-Type': 'application/json' }

test('a response that breaks off is a network problem', async () => {
  const broken = new ReadableStream({ start: (body) => body.error(new TypeError('network error')) })
  stubNetwork(() => new Response(broken, { headers: JSON_TYPE }))

  await expect(listCategories()).rejects.toMatchObject({ type: 'network', isTransient: true })
})

test('a response that stalls is a network problem', async () => {
  const stalled = new ReadableStream({ start: (body) => body.error(new DOMException('', 'TimeoutError')) })
  stubNetwork(() => new Response(stalled, { headers: JSON_TYPE }))

  await expect(listCategories()).rejects.toMatchObject({ type: 'network', isTransient: true })
})

test('a page from a captive portal is a network problem', async () => {
  stubNetwork(() => new Response('<h1>Welcome to the hotel</h1>', { headers: { 'Content-Type': 'text/html' } }))

  await expect(listCategories()).rejects.toMatchObject({ type: 'network' })
})

test('a refusal has its type, and only a transient one is retried', async () => {
  stubNetwork(() => problemResponse('access-denied', 403))

  await expect(listCategories()).rejects.toMatchObject({ type: 'access-denied', status: 403, isTransient: false })
})

test('an aborted request is not a network problem', async () => {
  stubNetwork(() => Promise.reject(new DOMException('The user aborted a request.', 'AbortError')))

  await expect(listCategories()).rejects.toMatchObject({ name: 'AbortError' })
})

test('a page of orders comes with the total count', async () => {
  stubNetwork(() => jsonResponse([], 200, { 'X-Total-Count': '31' }))

  expect(await listOrders({})).toEqual({ orders: [], total: 31 })
})
