import { vi } from 'vitest'
import type { Notification, Order, Product, User } from '@/api/client'

/** The API's objects and responses, for specs. */

export const product = (fields: Partial<Product> = {}): Product => ({
  id: 1,
  name: 'Chanterelles, 250 g',
  description: 'Peppery, with a smell of apricots.',
  price: '14.50',
  stock_quantity: 24,
  sku: 'FRE-CHANTERELLE-250',
  category: 'Fresh',
  image_url: null,
  is_active: true,
  created_at: '2026-01-01T08:00:00Z',
  updated_at: '2026-01-01T08:00:00Z',
  ...fields,
})

export const user = (fields: Partial<User> = {}): User => ({
  id: 7,
  email: 'ada@forage.example',
  username: 'ada',
  role: 'customer',
  is_active: true,
  created_at: '2026-01-01T08:00:00Z',
  updated_at: '2026-01-01T08:00:00Z',
  ...fields,
})

export const order = (fields: Partial<Order> = {}): Order => ({
  id: 31,
  user_id: 7,
  user_email: 'ada@forage.example',
  status: 'pending',
  total_amount: '29.00',
  created_at: '2026-01-01T08:00:00Z',
  updated_at: '2026-01-01T08:00:00Z',
  items: [],
  history: [],
  ...fields,
})

export const notification = (fields: Partial<Notification> = {}): Notification => ({
  id: 1,
  type: 'email',
  event_type: 'order_status_update',
  recipient_email: 'ada@forage.example',
  subject: 'Your order 31 is confirmed',
  message: 'Now we pack it.',
  order_id: 31,
  user_id: 7,
  status: 'sent',
  error_message: null,
  attempts: 1,
  read_at: null,
  created_at: '2026-01-01T08:00:00Z',
  ...fields,
})

export const jsonResponse = (body: unknown, status = 200, headers: Record<string, string> = {}) =>
  new Response(JSON.stringify(body), { status, headers: { 'Content-Type': 'application/json', ...headers } })

export const problemResponse = (
  type: string,
  status: number,
  fields: object = {},
  headers: Record<string, string> = {},
) => jsonResponse({ type, title: type, status, detail: type, request_id: 'r', ...fields }, status, headers)

/** Replaces fetch by `reply`. Returns the list of requests, which grows. */
export function stubNetwork(reply: (request: Request, path: string) => Response | Promise<Response>) {
  const requests: Request[] = []
  vi.stubGlobal('fetch', (request: Request) => {
    requests.push(request.clone())
    return Promise.resolve(reply(request, new URL(request.url).pathname))
  })
  return requests
}
