import { createEventHook, useEventListener, watchThrottled } from '@vueuse/core'
import { defineStore } from 'pinia'
import { computed, reactive, ref, watch } from 'vue'
import { createReconnectingSocket, type Message } from '@/api/reconnectingSocket'
import { Problem } from '@/api/problem'
import { currentToken, refreshToken } from '@/api/token'
import { backoffMs } from '@/utils/backoff'
import { useSession } from './session'

export type ProductUpdate = {
  id: number
  price: string
  stock_quantity: number
  is_active: boolean
  revision: number
}
export type PushedNotification = {
  id: number
  event_type: string
  subject: string
  message: string
  order_id: number
  /** The number of the order's event: a later event has a higher one. */
  sequence: number
  timestamp: string
}

const MAX_WATCHED = 200
const WATCH_MS = 150

/**
 * This tab's WebSocket.
 *
 * onConnected: the feed has started or restarted. Product updates may have been missed, so refetch.
 * onAuthenticated: the same for notifications.
 */
export const useLiveFeed = defineStore('liveFeed', () => {
  const session = useSession()
  const notification = createEventHook<PushedNotification>()
  const product = createEventHook<ProductUpdate>()
  const connected = createEventHook<void>()
  const authenticated = createEventHook<void>()
  const watched = reactive(new Map<number, number>())
  const revisions = new Map<number, number>()
  const isOpen = ref(false)
  const isAuthenticated = ref(false)

  const socket = createReconnectingSocket({ onMessage: handleMessage, onLost: handleLost })
  useEventListener(window, 'online', socket.check)
  useEventListener(window, 'pageshow', ({ persisted }: PageTransitionEvent) => persisted && socket.check())
  useEventListener(document, 'visibilitychange', () => document.hidden || socket.check())

  /** Sent, and not answered yet. */
  let pendingToken: string | null = null
  let refusals = 0
  let renewal: ReturnType<typeof setTimeout> | undefined

  function handleMessage(message: Message) {
    if (message.type === 'connected') handleConnected()
    else if (message.type === 'authenticated') handleAuthenticated()
    else if (message.type === 'expired') handleExpired()
    else if (message.type === 'error') handleError(message.detail)
    else if (message.type === 'notification') void notification.trigger(message.data as PushedNotification)
    else if (message.type === 'product') handleProduct(message.data as ProductUpdate)
  }

  function handleConnected() {
    isOpen.value = true
    // Another gateway, or a restarted one, may count from the start again.
    revisions.clear()
    authenticate()
    socket.send('watch', { product_ids: watchedIds() })
    // The session is still unknown if the shop was unreachable when the page opened.
    void session.restore()
    void connected.trigger()
  }

  function handleLost() {
    clearTimeout(renewal)
    pendingToken = null
    isOpen.value = isAuthenticated.value = false
  }

  function authenticate() {
    clearTimeout(renewal)
    pendingToken = isOpen.value ? currentToken() : null
    if (pendingToken) socket.send('authenticate', { token: pendingToken })
  }

  function handleAuthenticated() {
    pendingToken = null
    refusals = 0
    isAuthenticated.value = true
    void authenticated.trigger()
  }

  function handleExpired() {
    isAuthenticated.value = false
    void renew(currentToken())
  }

  function handleError(detail: unknown) {
    console.warn('The feed refused:', detail)
    if (pendingToken) renewLater(pendingToken)
    pendingToken = null
  }

  /** The token has expired, or the user has too many sockets. Both may change. */
  function renewLater(stale: string | null) {
    clearTimeout(renewal)
    renewal = setTimeout(() => void renew(stale), backoffMs(++refusals))
  }

  async function renew(stale: string | null) {
    try {
      if (stale && (await refreshToken(stale))) authenticate()
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      renewLater(stale)
    }
  }

  watch(
    () => session.user?.id,
    (id, before) => {
      refusals = 0
      // Only a new socket becomes anonymous again.
      if (before !== undefined) socket.reopen()
      else if (!isAuthenticated.value && !pendingToken) authenticate()
    },
  )

  /** Ignores an update older than the last one. */
  function handleProduct(update: ProductUpdate) {
    if (update.revision <= (revisions.get(update.id) ?? 0)) return
    revisions.set(update.id, update.revision)
    void product.trigger(update)
  }

  const watchedIds = () => [...watched.keys()].slice(-MAX_WATCHED)
  const watchList = computed(() => watchedIds().join())
  // Throttled, since the gateway disconnects a client that sends too much. Not longer, since changes before the message
  // are missed.
  watchThrottled(watchList, () => socket.send('watch', { product_ids: watchedIds() }), { throttle: WATCH_MS })

  /** Receives updates of these products until `unwatchProducts` is called as often. */
  function watchProducts(ids: number[]) {
    for (const id of ids) watched.set(id, (watched.get(id) ?? 0) + 1)
  }

  function unwatchProducts(ids: number[]) {
    for (const id of ids) {
      const left = (watched.get(id) ?? 1) - 1
      if (left) watched.set(id, left)
      else watched.delete(id)
    }
  }

  return {
    isOpen,
    isAuthenticated,
    open: socket.open,
    onNotification: notification.on,
    onAuthenticated: authenticated.on,
    onProduct: product.on,
    onConnected: connected.on,
    watchProducts,
    unwatchProducts,
  }
})
