const MAX_PAUSE_SECONDS = 30

/** Random, so that after a restart the browsers don't all reconnect at once. */
export function backoffMs(attempt: number, random = Math.random()): number {
  const longest = Math.min(MAX_PAUSE_SECONDS, 2 ** (attempt - 1))
  return 1000 * longest * (0.5 + random / 2)
}
