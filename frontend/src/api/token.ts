import { Problem } from './problem'

/**
 * The access token of this tab, in memory alone, and the one way to a new one: the refresh cookie.
 *
 * However many requests find it expired at once, in however many tabs, one refresh is sent for them all. Whether it
 * has expired the gateway says: the clock of this machine may be wrong.
 */

/** What a tab tells the others: the token, null when the session is over. */
type Message = { token: string | null }

const LOCK = 'forage.refresh'
/** The gateway gives a call 5 s; the rest is for slow networks. */
const ANSWER_SECONDS = 15
const REFRESH_SECONDS = 6
/** What one tab says the others hear a moment later. */
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

/** The listener hears of every token that comes, and of the end, from here or from another tab. */
export function onTokenChange(callback: () => void) {
  listener = callback
}

export function currentToken() {
  return token
}

/** Whose the token is, as far as it can be read. */
export function tokenUserId(signed = token): string | null {
  try {
    return JSON.parse(atob(signed!.split('.')[1]!.replace(/-/g, '+').replace(/_/g, '/'))).sub
  } catch {
    return null
  }
}

/** This tab and the others have a session now. */
export const setToken = (newToken: string) => broadcast(newToken)

/** No tab has a session any more. */
export const clearToken = () => broadcast(null)

function broadcast(to: string | null) {
  token = to
  channel.postMessage({ token } satisfies Message)
  listener()
}

/**
 * Logging in, logging out and refreshing wait for each other: of two answers that each bring a cookie the later one
 * stays, whoever it is of. In all tabs where there are Web Locks, on https and localhost; else in this one.
 */
export function withSessionLock<Result>(work: () => Promise<Result>): Promise<Result> {
  const run = navigator.locks ? underWebLock(work) : queue.then(work)
  queue = run.catch(() => {})
  return run
}

/** The lock is held until the other tabs have heard; who works here needn't wait for that. */
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
 * A new token in place of `stale`. False when the session is over.
 * Raises Problem when that can't be told just now: the session then stands.
 */
export function refreshToken(stale: string | null): Promise<boolean> {
  refreshing ??= withSessionLock(() => refresh(stale)).finally(() => {
    refreshing = null
  })
  return refreshing
}

async function refresh(stale: string | null): Promise<boolean> {
  if (token !== stale) return token !== null
  // An answer that was lost may have changed the cookie. The old one is good for 10 s more, and would later be taken
  // for a stolen one.
  const response = await requestToken().catch(requestToken)
  const body = await response.json().catch(() => null)
  // Without Web Locks another tab may have been quicker.
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

/** fetch as the caller: where the token is what is refused, one refresh and one more try. */
export async function fetchWithToken(request: Request): Promise<Response> {
  const used = token
  if (!used) return sendWithTimeout(request)
  const retry = request.clone()
  request.headers.set('Authorization', `Bearer ${used}`)
  const response = await sendWithTimeout(request)
  // RFC 6750. A wrong password is a 401, too.
  const isStale = response.status === 401 && response.headers.get('WWW-Authenticate')?.includes('invalid_token')
  if (!isStale || !(await refreshToken(used))) return response
  // What one user asked for is not done as another.
  if (tokenUserId() !== tokenUserId(used)) return response
  retry.headers.set('Authorization', `Bearer ${token}`)
  return sendWithTimeout(retry)
}

/** Who waits for an answer that never comes holds up what waits for them, in all tabs. */
async function sendWithTimeout(request: Request): Promise<Response> {
  const signal = AbortSignal.any([request.signal, AbortSignal.timeout(ANSWER_SECONDS * 1000)])
  try {
    return await fetch(request, { signal })
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error
    throw new Problem({})
  }
}
