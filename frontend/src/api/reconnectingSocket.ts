import { backoffMs } from '@/utils/backoff'

/**
 * The gateway's WebSocket. It reconnects with growing pauses, without end, also after a silent loss (the laptop slept,
 * the network changed). `check` reconnects at once.
 */

export type Message = { type: string; [field: string]: unknown }

const PING_SECONDS = 20
/** Without a message in this time the connection counts as lost. */
const ANSWER_SECONDS = 8
// WebSocket.OPEN.
const OPEN = 1

/** Connects on `open`. onLost: the connection, or an attempt, has failed. */
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
  // One timer: for the next ping, the timeout of an answer, or the next attempt.
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
    else console.error('The feed sent an invalid message:', data)
  }

  function ping() {
    send('ping')
    schedule(ANSWER_SECONDS * 1000, reconnect)
  }

  function reconnect() {
    // The pauses start over only after a connection that lasted.
    if (firstMessageAt && Date.now() - firstMessageAt > PING_SECONDS * 1000) attempts = 1
    closeSocket()
    schedule(backoffMs(attempts), connect)
    onLost()
  }

  /** Detaches the handlers, since events of an old socket may come late. */
  function closeSocket() {
    firstMessageAt = 0
    if (!socket) return
    socket.onmessage = socket.onclose = null
    socket.close()
    socket = null
  }

  function reopen() {
    onLost()
    connect()
  }

  /** Tests the connection at once, when the network or the user may be back. */
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
