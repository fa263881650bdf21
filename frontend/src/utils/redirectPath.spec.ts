import { expect, test } from 'vitest'
import { safeRedirectPath } from './redirectPath'

test.each(['/', '/orders', '/orders/7?placed=1#top', '/?q=a//b', '/products/1?next=https://example.com'])(
  '%s is a safe path',
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
])('%j is replaced by the first page', (path) => {
  expect(safeRedirectPath(path)).toBe('/')
})

test.each(['/login', '/register?next=/orders', '/auth/callback#token=x'])(
  '%s is replaced, since it redirects by itself',
  (path) => {
    expect(safeRedirectPath(path)).toBe('/')
  },
)
