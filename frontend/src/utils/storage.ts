/**
 * What is kept on this machine for the next visit. Where the browser keeps nothing, since its reader forbade it or it is
 * full, it lasts as long as this page does.
 */
const memory = new Map<string, string>()

function orIfForbidden<Result>(work: () => Result, fallback: () => Result): Result {
  try {
    return work()
  } catch (error) {
    if (!(error instanceof DOMException)) throw error
    return fallback()
  }
}

export function getStored(key: string): string | null {
  return (
    memory.get(key) ??
    orIfForbidden(
      () => localStorage.getItem(key),
      () => null,
    )
  )
}

export function setStored(key: string, value: string) {
  memory.delete(key)
  orIfForbidden(
    () => localStorage.setItem(key, value),
    () => void memory.set(key, value),
  )
}

export function removeStored(key: string) {
  memory.delete(key)
  orIfForbidden(
    () => localStorage.removeItem(key),
    () => {},
  )
}
