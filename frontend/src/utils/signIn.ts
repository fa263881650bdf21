import { ownPath } from './path'

/** Where one was before the way to a sign-in provider led out of the shop. */
const KEY = 'forage.sign-in-next'

export const rememberPath = (path: string) => sessionStorage.setItem(KEY, path)

/** Once. */
export function rememberedPath(): string {
  const path = ownPath(sessionStorage.getItem(KEY))
  sessionStorage.removeItem(KEY)
  return path
}
