import { vi } from 'vitest'

/** Replaces the browser's WebSocket and the gateway behind it. */
export class FakeSocket {
  static CONNECTING = 0
  static OPEN = 1
  static CLOSED = 3
  static all: FakeSocket[] = []

  readyState = FakeSocket.CONNECTING
  onmessage: ((event: { data: string }) => void) | null = null
  onclose: (() => void) | null = null
  sent: { type: string; [field: string]: unknown }[] = []

  constructor() {
    FakeSocket.all.push(this)
  }

  /** The connection is dead without having been closed. */
  isUnresponsive = false

  send(text: string) {
    this.sent.push(JSON.parse(text))
    if (this.sent.at(-1)!.type === 'ping' && !this.isUnresponsive) queueMicrotask(() => this.receive({ type: 'pong' }))
  }

  close() {
    this.readyState = FakeSocket.CLOSED
  }

  sentOf = (type: string) => this.sent.filter((message) => message.type === type)

  greet() {
    this.readyState = FakeSocket.OPEN
    this.receive({ type: 'connected', message: 'Welcome to Forage.' })
  }

  receive(message: unknown) {
    this.onmessage?.({ data: typeof message === 'string' ? message : JSON.stringify(message) })
  }

  disconnect() {
    this.readyState = FakeSocket.CLOSED
    this.onclose?.()
  }
}

export function stubSockets() {
  FakeSocket.all = []
  vi.stubGlobal('WebSocket', FakeSocket)
}

export const latestSocket = () => FakeSocket.all.at(-1)!
