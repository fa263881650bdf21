import { backoffMs } from '@/utils/backoff'

/**
 * The gateway's WebSocket, and how it comes back.
 *
 * Whatever ends it, even without a word (a laptop that slept, a network that changed), it is opened again after
 * growing pauses, without end; and at once by `check`.
 */

export type Message = { type: string; [field: string]: unknown }

const PING_SECONDS = 20
/** Who hasn't answered by then doesn't hear us. */
const ANSWER_SECONDS = 8
// WebSocket.OPEN.
const OPEN = 1

/** Nothing happens before `open`. onLost: what was open, or was tried to open, is gone. */
export function createReconnectingSocket({
  onMessage,
  onLost,
}: {
  onMessage: (message: Message) => void
  onLost: () => void
}) {
  let socket: WebSocket | null = null
  let attempts = 0
  let firstMessageAt = 0
  // The one thing that comes next: a ping, the end of waiting for an answer, or another attempt.
  let timer: ReturnType<typeof setTimeout> | undefined

  function schedule(delayMs: number, task: () => void) {
    clearTimeout(timer)
    timer = setTimeout(task, delayMs)
  }

  function connect() {
    closeSocket()
    attempts++
    socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws/notifications`)
    socket.onmessage = handleMessage
    socket.onclose = reconnect
    schedule(ANSWER_SECONDS * 1000, reconnect)
  }

  function handleMessage({ data }: MessageEvent) {
    firstMessageAt ||= Date.now()
    schedule(PING_SECONDS * 1000, ping)
    const message = parse(data)
    if (message) onMessage(message)
    else console.error('The feed sent what is no message:', data)
  }

  function ping() {
    send('ping')
    schedule(ANSWER_SECONDS * 1000, reconnect)
  }

  function reconnect() {
    // One that is closed again soon after its greeting has not come back.
    if (firstMessageAt && Date.now() - firstMessageAt > PING_SECONDS * 1000) attempts = 1
    closeSocket()
    schedule(backoffMs(attempts), connect)
    onLost()
  }

  /** Its events may come late, and are then no longer about what is open. */
  function closeSocket() {
    firstMessageAt = 0
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
    if (timer === undefined) return
    if (socket?.readyState === OPEN) ping()
    else connect()
  }

  function open() {
    if (timer === undefined) connect()
  }

  function send(type: string, fields: object = {}) {
    if (socket?.readyState === OPEN) socket.send(JSON.stringify({ type, ...fields }))
  }

  return { open, reopen, check, send }
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
