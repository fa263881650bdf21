import { safeRedirectPath } from './redirectPath'

/** Keeps the requested page while the user signs in at a provider. */
const KEY = 'forage.sign-in-next'

export const saveRedirectPath = (path: string) => sessionStorage.setItem(KEY, path)

/** Returns the path and forgets it. */
export function takeRedirectPath(): string {
  const path = safeRedirectPath(sessionStorage.getItem(KEY))
  sessionStorage.removeItem(KEY)
  return path
}
