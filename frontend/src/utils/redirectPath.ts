/** These pages redirect by themselves. */
const NEVER_RETURNED_TO = ['/login', '/register', '/auth/callback']

/**
 * Returns an untrusted path if it stays within the shop, else the first page. Browsers read `//host`, `/\host` and some
 * other spellings as another host.
 */
export function safeRedirectPath(path: unknown): string {
  if (typeof path !== 'string' || !/^\/[^\\\x00-\x1f]*$/.test(path)) return '/'
  const url = new URL(path, location.origin)
  return url.origin === location.origin && !url.pathname.startsWith('//') && !NEVER_RETURNED_TO.includes(url.pathname)
    ? path
    : '/'
}
