import { expect, type Page } from '@playwright/test'
import type { Api } from './support'

/** Every page of the shop. `who` must be logged in to see it as it is meant. */
export type Entry = { name: string; path: string; who: 'anybody' | 'customer' | 'admin' }

/** orderId, productId: of things that are there, the order ada's. */
export const pages = ({ orderId, productId }: { orderId: number; productId: number }): Entry[] => [
  { name: 'shop', path: '/', who: 'anybody' },
  { name: 'search', path: '/?q=porcini&sort=price', who: 'anybody' },
  { name: 'no-results', path: '/?q=unicorn', who: 'anybody' },
  { name: 'product', path: `/products/${productId}`, who: 'anybody' },
  { name: 'no-product', path: '/products/999999', who: 'anybody' },
  { name: 'empty-cart', path: '/cart', who: 'anybody' },
  { name: 'login', path: '/login', who: 'anybody' },
  { name: 'register', path: '/register', who: 'anybody' },
  { name: 'forgot-password', path: '/forgot-password', who: 'anybody' },
  { name: 'reset-password', path: '/reset-password#token=bad', who: 'anybody' },
  { name: 'verify-email', path: '/verify-email#token=bad', who: 'anybody' },
  { name: 'sign-in-refused', path: '/auth/callback#error=sign-in-refused', who: 'anybody' },
  { name: 'not-found', path: '/where/is/it', who: 'anybody' },
  { name: 'cart', path: '/cart', who: 'customer' },
  { name: 'checkout', path: '/checkout', who: 'customer' },
  { name: 'orders', path: '/orders', who: 'customer' },
  { name: 'order', path: `/orders/${orderId}`, who: 'customer' },
  { name: 'notifications', path: '/notifications', who: 'customer' },
  { name: 'account', path: '/account', who: 'customer' },
  { name: 'dashboard', path: '/admin', who: 'admin' },
  { name: 'admin-orders', path: '/admin/orders', who: 'admin' },
  { name: 'admin-order', path: `/admin/orders/${orderId}`, who: 'admin' },
  { name: 'admin-products', path: '/admin/products', who: 'admin' },
  { name: 'admin-product-new', path: '/admin/products/new', who: 'admin' },
  { name: 'admin-product', path: `/admin/products/${productId}`, who: 'admin' },
  { name: 'admin-notifications', path: '/admin/notifications', who: 'admin' },
  { name: 'admin-parked', path: '/admin/parked', who: 'admin' },
  { name: 'admin-users', path: '/admin/users', who: 'admin' },
]

/** Goes there, and waits until it shows what it has to show. */
export async function visit(page: Page, path: string) {
  await page.goto(path)
  await expect(page.getByRole('heading', { level: 1 })).toBeVisible()
  await expect(page.locator('.skeleton')).toHaveCount(0)
  await page.waitForLoadState('networkidle')
}

/** What the pages are looked at with: an order of ada's with its product. */
export async function something(api: Api, productId: number) {
  const order = await api.send<{ id: number }>('POST', '/orders', { items: [{ product_id: productId, quantity: 2 }] })
  return { orderId: order.id, productId }
}
