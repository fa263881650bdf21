import { createEventHook, useEventListener, watchThrottled } from '@vueuse/core'
import { defineStore } from 'pinia'
import { computed, reactive, ref, watch } from 'vue'
import { createFeed, type Message, pauseBefore } from '@/api/feed'
import { Problem } from '@/api/problem'
import { currentToken, refreshToken } from '@/api/token'
import { useSession } from './session'

export type ProductNews = {
  id: number
  price: string
  stock_quantity: number
  is_active: boolean
  revision: number
}
export type NotificationNews = {
  id: number
  event_type: string
  subject: string
  message: string
  order_id: number | null
  /** The place of its order's event among the others. */
  sequence: number | null
  timestamp: string
}

const MAX_WATCHED = 200
const WATCH_MS = 150

/**
 * The one WebSocket of this tab.
 *
 * onProduct, onNotification: what comes in. onGap: the feed begins (again), and of products something may have been
 * missed. onAuthenticated: the same of notifications. So what is on the screen is then read once more.
 */
export const useLive = defineStore('live', () => {
  const session = useSession()
  const notification = createEventHook<NotificationNews>()
  const product = createEventHook<ProductNews>()
  const gap = createEventHook<void>()
  const authenticated = createEventHook<void>()
  const watched = reactive(new Map<number, number>())
  const revisions = new Map<number, number>()
  const isOpen = ref(false)
  const isAuthenticated = ref(false)

  const feed = createFeed({ onMessage: hear, onLost: lose })
  useEventListener(window, 'online', feed.check)
  useEventListener(window, 'pageshow', ({ persisted }: PageTransitionEvent) => persisted && feed.check())
  useEventListener(document, 'visibilitychange', () => document.hidden || feed.check())

  /** The token that was sent and not answered yet. */
  let asked: string | null = null
  let refusals = 0
  let renewal: ReturnType<typeof setTimeout> | undefined

  function hear(message: Message) {
    if (message.type === 'connected') greet()
    else if (message.type === 'authenticated') enter()
    else if (message.type === 'expired') expire()
    else if (message.type === 'error') refuse(message.detail)
    else if (message.type === 'notification') void notification.trigger(message.data as NotificationNews)
    else if (message.type === 'product') hearProduct(message.data as ProductNews)
  }

  function greet() {
    isOpen.value = true
    // Another gateway, or another life of this one, may count anew.
    revisions.clear()
    authenticate()
    feed.say('watch', { product_ids: watchedIds() })
    // When the shop was away as the page was opened, nobody knows yet who is there.
    void session.begin()
    void gap.trigger()
  }

  function lose() {
    clearTimeout(renewal)
    asked = null
    isOpen.value = isAuthenticated.value = false
  }

  function authenticate() {
    clearTimeout(renewal)
    asked = isOpen.value ? currentToken() : null
    if (asked) feed.say('authenticate', { token: asked })
  }

  function enter() {
    asked = null
    refusals = 0
    isAuthenticated.value = true
    void authenticated.trigger()
  }

  function expire() {
    isAuthenticated.value = false
    void renew(currentToken())
  }

  function refuse(detail: unknown) {
    console.warn('The feed refused:', detail)
    if (asked) renewLater(asked)
    asked = null
  }

  /** The token is too old, or the user has as many sockets as one may have: both may be otherwise in a while. */
  function renewLater(stale: string | null) {
    clearTimeout(renewal)
    renewal = setTimeout(() => void renew(stale), pauseBefore(++refusals))
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
      // Nothing but a new socket makes one anonymous again.
      if (before !== undefined) feed.reopen()
      else if (!isAuthenticated.value && !asked) authenticate()
    },
  )

  /** What is older than what is known says nothing. */
  function hearProduct(news: ProductNews) {
    if (news.revision <= (revisions.get(news.id) ?? 0)) return
    revisions.set(news.id, news.revision)
    void product.trigger(news)
  }

  const watchedIds = () => [...watched.keys()].slice(-MAX_WATCHED)
  const watchList = computed(() => watchedIds().join())
  // The gateway hangs up on who says too much.
  // And what is said late is heard late: of what changed meanwhile nobody tells.
  watchThrottled(watchList, () => feed.say('watch', { product_ids: watchedIds() }), { throttle: WATCH_MS })

  /** Hear of these products, until `unwatch` is called with them as often. */
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
    open: feed.open,
    onNotification: notification.on,
    onAuthenticated: authenticated.on,
    onProduct: product.on,
    onGap: gap.on,
    watchProducts,
    unwatchProducts,
  }
})
