import { expect, test } from 'vitest'
import { safeRedirectPath } from './redirectPath'

test.each(['/', '/orders', '/orders/7?placed=1#top', '/?q=a//b', '/products/1?next=https://example.com'])(
  '%s is a path of our own',
  (path) => {
    expect(safeRedirectPath(path)).toBe(path)
  },
)

test.each([
  'https://evil.example',
  '//evil.example',
  '/\\evil.example',
  '/\t/evil.example',
  '/\n/evil.example',
  '/..//evil.example',
  '/.//evil.example',
  '\\\\evil.example',
  'javascript:alert(1)',
  'orders',
  '',
  null,
  undefined,
  ['/orders', '/cart'],
])('%j leads to the first page', (path) => {
  expect(safeRedirectPath(path)).toBe('/')
})

test.each(['/login', '/register?next=/orders', '/auth/callback#token=x'])(
  '%s, which leads on itself, is not gone back to',
  (path) => {
    expect(safeRedirectPath(path)).toBe('/')
  },
)
