const MAX_PAUSE_SECONDS = 30

/** Different for each browser, so that after a restart not all come back at once. */
export function backoffMs(attempt: number, random = Math.random()): number {
  const longest = Math.min(MAX_PAUSE_SECONDS, 2 ** (attempt - 1))
  return 1000 * longest * (0.5 + random / 2)
}
