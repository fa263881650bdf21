import { safeRedirectPath } from './redirectPath'

/** Where one was before the way to a sign-in provider led out of the shop. */
const KEY = 'forage.sign-in-next'

export const saveRedirectPath = (path: string) => sessionStorage.setItem(KEY, path)

/** Once. */
export function takeRedirectPath(): string {
  const path = safeRedirectPath(sessionStorage.getItem(KEY))
  sessionStorage.removeItem(KEY)
  return path
}
