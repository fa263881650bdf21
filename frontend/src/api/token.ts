import { Problem } from './problem'

/**
 * The access token, kept in memory only and renewed by the refresh cookie.
 *
 * All requests of all tabs that find it expired share one refresh. The gateway decides whether it has expired, since
 * this machine's clock may be wrong.
 */

/** Sent to the other tabs. token: null when the session is over. */
type Message = { token: string | null }

const LOCK = 'forage.refresh'
/** The gateway's limit for a call is 5 s; the rest is for slow networks. */
const ANSWER_SECONDS = 15
const REFRESH_SECONDS = 6
/** How long a broadcast may take to reach the other tabs. */
const HOLD_MS = 100

const channel = new BroadcastChannel('forage.session')

let token: string | null = null
let refreshing: Promise<boolean> | null = null
let queue: Promise<unknown> = Promise.resolve()
let listener: () => void = () => {}

channel.onmessage = ({ data }: MessageEvent<Message>) => {
  token = data.token
  listener()
}

/** Calls back on every new token and at the end of the session, in this tab or another. */
export function onTokenChange(callback: () => void) {
  listener = callback
}

export function currentToken() {
  return token
}

/** The user id in the token; null if it can't be read. */
export function tokenUserId(signed = token): string | null {
  try {
    return JSON.parse(atob(signed!.split('.')[1]!.replace(/-/g, '+').replace(/_/g, '/'))).sub
  } catch {
    return null
  }
}

/** Sets the token in all tabs. */
export const setToken = (newToken: string) => broadcast(newToken)

/** Ends the session in all tabs. */
export const clearToken = () => broadcast(null)

function broadcast(to: string | null) {
  token = to
  channel.postMessage({ token } satisfies Message)
  listener()
}

/**
 * Runs login, logout and refresh one at a time: of two overlapping ones, the cookie of the last answer would win.
 * Across all tabs where Web Locks exist (https and localhost), else within this tab.
 */
export function withSessionLock<Result>(work: () => Promise<Result>): Promise<Result> {
  const run = navigator.locks ? underWebLock(work) : queue.then(work)
  queue = run.catch(() => {})
  return run
}

/** Resolves when the work is done. The lock is held a little longer, until the other tabs have its result. */
function underWebLock<Result>(work: () => Promise<Result>): Promise<Result> {
  return new Promise((resolve, reject) => {
    const held = navigator.locks.request(LOCK, async () => {
      await work().then(resolve, reject)
      await new Promise((done) => setTimeout(done, HOLD_MS))
    })
    held.catch(reject)
  })
}

/**
 * Replaces the token `stale`. False when the session is over.
 * Raises Problem when no clear answer comes: the session then continues.
 */
export function refreshToken(stale: string | null): Promise<boolean> {
  refreshing ??= withSessionLock(() => refresh(stale)).finally(() => {
    refreshing = null
  })
  return refreshing
}

async function refresh(stale: string | null): Promise<boolean> {
  if (token !== stale) return token !== null
  // A lost answer may have replaced the cookie. The gateway accepts the old one for 10 more seconds, then takes it for
  // stolen. So retry at once.
  const response = await requestToken().catch(requestToken)
  const body = await response.json().catch(() => null)
  // Without Web Locks, another tab may have changed it meanwhile.
  if (token !== stale) return token !== null
  if (response.ok && body?.access_token) {
    setToken(body.access_token)
    return true
  }
  const problem = new Problem(body ?? {}, response)
  if (problem.type !== 'invalid-session') throw problem
  clearToken()
  return false
}

const requestToken = () =>
  sendWithTimeout(
    new Request('/api/auth/refresh', { method: 'POST', signal: AbortSignal.timeout(REFRESH_SECONDS * 1000) }),
  )

/** fetch with the token. If the token is refused, refreshes it and retries once. */
export async function fetchWithToken(request: Request): Promise<Response> {
  const used = token
  if (!used) return sendWithTimeout(request)
  const retry = request.clone()
  request.headers.set('Authorization', `Bearer ${used}`)
  const response = await sendWithTimeout(request)
  // RFC 6750. A wrong password is also a 401.
  const isStale = response.status === 401 && response.headers.get('WWW-Authenticate')?.includes('invalid_token')
  if (!isStale || !(await refreshToken(used))) return response
  // Never retry one user's request as another.
  if (tokenUserId() !== tokenUserId(used)) return response
  retry.headers.set('Authorization', `Bearer ${token}`)
  return sendWithTimeout(retry)
}

/** With a timeout, since a request without an answer would hold the lock for all tabs. */
async function sendWithTimeout(request: Request): Promise<Response> {
  const signal = AbortSignal.any([request.signal, AbortSignal.timeout(ANSWER_SECONDS * 1000)])
  try {
    return await fetch(request, { signal })
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error
    throw new Problem({})
  }
}
