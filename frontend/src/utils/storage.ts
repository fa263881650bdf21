/** localStorage with a fallback: where it is forbidden or full, values last as long as the page. */
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
