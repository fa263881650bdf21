/**
 * What is kept on this machine for the next visit. Where the browser keeps nothing, since its reader forbade it or it is
 * full, it lasts as long as this page does.
 */
const standIn = new Map<string, string>()

function attempt<Result>(work: () => Result, otherwise: () => Result): Result {
  try {
    return work()
  } catch (error) {
    if (!(error instanceof DOMException)) throw error
    return otherwise()
  }
}

export function recall(key: string): string | null {
  return (
    standIn.get(key) ??
    attempt(
      () => localStorage.getItem(key),
      () => null,
    )
  )
}

export function keep(key: string, value: string) {
  standIn.delete(key)
  attempt(
    () => localStorage.setItem(key, value),
    () => void standIn.set(key, value),
  )
}

export function drop(key: string) {
  standIn.delete(key)
  attempt(
    () => localStorage.removeItem(key),
    () => {},
  )
}
