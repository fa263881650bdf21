/**
 * The gateway's WebSocket, and how it comes back.
 *
 * Whatever ends it, even without a word (a laptop that slept, a network that changed), it is opened again after
 * growing pauses, without end; and at once by `check`.
 */

export type Message = { type: string; [field: string]: unknown }
export type Feed = ReturnType<typeof createFeed>

const PING_SECONDS = 20
/** Who hasn't answered by then doesn't hear us. */
const ANSWER_SECONDS = 8
const LONGEST_PAUSE_SECONDS = 30
// WebSocket.OPEN.
const OPEN = 1

/** Different for each browser, so that after a restart not all come back at once. */
export function pauseBefore(attempt: number, random = Math.random()): number {
  const longest = Math.min(LONGEST_PAUSE_SECONDS, 2 ** (attempt - 1))
  return 1000 * longest * (0.5 + random / 2)
}

/** Nothing happens before `open`. onLost: what was open, or was tried to open, is gone. */
export function createFeed({ onMessage, onLost }: { onMessage: (message: Message) => void; onLost: () => void }) {
  let socket: WebSocket | null = null
  let attempts = 0
  let heardFirst = 0
  // The one thing that comes next: a ping, the end of waiting for an answer, or another attempt.
  let next: ReturnType<typeof setTimeout> | undefined

  function after(milliseconds: number, what: () => void) {
    clearTimeout(next)
    next = setTimeout(what, milliseconds)
  }

  function connect() {
    drop()
    attempts++
    socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws/notifications`)
    socket.onmessage = hear
    socket.onclose = lose
    after(ANSWER_SECONDS * 1000, lose)
  }

  function hear({ data }: MessageEvent) {
    heardFirst ||= Date.now()
    after(PING_SECONDS * 1000, ping)
    const message = parse(data)
    if (message) onMessage(message)
    else console.error('The feed sent what is no message:', data)
  }

  function ping() {
    say('ping')
    after(ANSWER_SECONDS * 1000, lose)
  }

  function lose() {
    // One that is closed again soon after its greeting has not come back.
    if (heardFirst && Date.now() - heardFirst > PING_SECONDS * 1000) attempts = 1
    drop()
    after(pauseBefore(attempts), connect)
    onLost()
  }

  /** Its events may come late, and are then no longer about what is open. */
  function drop() {
    heardFirst = 0
    if (!socket) return
    socket.onmessage = socket.onclose = null
    socket.close()
    socket = null
  }

  /** Another socket in the place of this one. */
  function reopen() {
    onLost()
    connect()
  }

  /** The network or the reader may have come back: is somebody there? */
  function check() {
    if (next === undefined) return
    if (socket?.readyState === OPEN) ping()
    else connect()
  }

  function open() {
    if (next === undefined) connect()
  }

  function say(type: string, fields: object = {}) {
    if (socket?.readyState === OPEN) socket.send(JSON.stringify({ type, ...fields }))
  }

  return { open, reopen, check, say }
}

function parse(data: unknown): Message | null {
  try {
    const message = JSON.parse(String(data))
    return typeof message?.type === 'string' ? message : null
  } catch (error) {
    if (error instanceof SyntaxError) return null
    throw error
  }
}
