import { expect, type Page } from '@playwright/test'
import type { Api } from './support'

/** A page of the shop. role: of the user that it is tested with. */
export type Entry = { name: string; path: string; role: 'guest' | 'customer' | 'admin' }

/** orderId: an order of ada's. productId: an existing product. */
export const pages = ({ orderId, productId }: { orderId: number; productId: number }): Entry[] => [
  { name: 'shop', path: '/', role: 'guest' },
  { name: 'search', path: '/?q=porcini&sort=price', role: 'guest' },
  { name: 'no-results', path: '/?q=unicorn', role: 'guest' },
  { name: 'product', path: `/products/${productId}`, role: 'guest' },
  { name: 'no-product', path: '/products/999999', role: 'guest' },
  { name: 'empty-cart', path: '/cart', role: 'guest' },
  { name: 'login', path: '/login', role: 'guest' },
  { name: 'register', path: '/register', role: 'guest' },
  { name: 'forgot-password', path: '/forgot-password', role: 'guest' },
  { name: 'reset-password', path: '/reset-password#token=bad', role: 'guest' },
  { name: 'verify-email', path: '/verify-email#token=bad', role: 'guest' },
  { name: 'sign-in-refused', path: '/auth/callback#error=sign-in-refused', role: 'guest' },
  { name: 'not-found', path: '/where/is/it', role: 'guest' },
  { name: 'cart', path: '/cart', role: 'customer' },
  { name: 'checkout', path: '/checkout', role: 'customer' },
  { name: 'orders', path: '/orders', role: 'customer' },
  { name: 'order', path: `/orders/${orderId}`, role: 'customer' },
  { name: 'notifications', path: '/notifications', role: 'customer' },
  { name: 'account', path: '/account', role: 'customer' },
  { name: 'dashboard', path: '/admin', role: 'admin' },
  { name: 'admin-orders', path: '/admin/orders', role: 'admin' },
  { name: 'admin-order', path: `/admin/orders/${orderId}`, role: 'admin' },
  { name: 'admin-products', path: '/admin/products', role: 'admin' },
  { name: 'admin-product-new', path: '/admin/products/new', role: 'admin' },
  { name: 'admin-product', path: `/admin/products/${productId}`, role: 'admin' },
  { name: 'admin-notifications', path: '/admin/notifications', role: 'admin' },
  { name: 'admin-parked', path: '/admin/parked', role: 'admin' },
  { name: 'admin-users', path: '/admin/users', role: 'admin' },
]

/** Opens a page and waits until it is loaded. */
export async function visit(page: Page, path: string) {
  await page.goto(path)
  await expect(page.getByRole('heading', { level: 1 })).toBeVisible()
  await expect(page.locator('.skeleton')).toHaveCount(0)
  await page.waitForLoadState('networkidle')
}

/** Places an order, for the pages that show one. */
export async function createOrder(api: Api, productId: number) {
  const order = await api.send<{ id: number }>('POST', '/orders', { items: [{ product_id: productId, quantity: 2 }] })
  return { orderId: order.id, productId }
}
