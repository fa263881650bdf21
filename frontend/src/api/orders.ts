import { api, type OrderStatus, unwrap, unwrapWithHeaders } from './client'

export const ORDER_STATUSES: OrderStatus[] = ['pending', 'confirmed', 'shipped', 'delivered', 'cancelled']

export type OrderItemRequest = { product_id: number; quantity: number; unit_price?: string }
export type OrderQuery = {
  skip?: number
  limit?: number
  status?: OrderStatus
  all?: boolean
  q?: string
  from?: string
  to?: string
}

/** Repeating a call with the same key makes no second order. */
export const placeOrder = (items: OrderItemRequest[], idempotencyKey: string) =>
  unwrap(api.POST('/orders', { params: { header: { 'Idempotency-Key': idempotencyKey } }, body: { items } }))

export async function listOrders(query: OrderQuery, signal?: AbortSignal) {
  const { data, headers } = await unwrapWithHeaders(api.GET('/orders', { params: { query }, signal }))
  return { orders: data, total: Number(headers.get('X-Total-Count')) }
}

export const getOrder = (id: number) => unwrap(api.GET('/orders/{order_id}', { params: { path: { order_id: id } } }))

export const setOrderStatus = (id: number, status: OrderStatus) =>
  unwrap(api.PATCH('/orders/{order_id}/status', { params: { path: { order_id: id } }, body: { status } }))
