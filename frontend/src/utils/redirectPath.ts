/** Pages that one is not brought back to: they lead on themselves. */
const NEVER_RETURNED_TO = ['/login', '/register', '/auth/callback']

/**
 * Where to go on, of an address that anybody may have written: a path of the shop's own, or else its first page.
 * `//host`, `/\host` and what browsers read as such lead elsewhere.
 */
export function safeRedirectPath(path: unknown): string {
  if (typeof path !== 'string' || !/^\/[^\\\x00-\x1f]*$/.test(path)) return '/'
  const url = new URL(path, location.origin)
  return url.origin === location.origin && !url.pathname.startsWith('//') && !NEVER_RETURNED_TO.includes(url.pathname)
    ? path
    : '/'
}
