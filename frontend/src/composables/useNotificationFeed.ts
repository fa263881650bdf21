import { useQueryClient } from '@tanstack/vue-query'
import { useEventListener } from '@vueuse/core'
import { onScopeDispose } from 'vue'
import { useI18n } from 'vue-i18n'
import { listNotifications } from '@/api/notifications'
import { Problem } from '@/api/problem'
import { type NotificationNews, useLive } from '@/stores/live'
import { useToasts } from '@/stores/toasts'
import { keep, recall } from '@/utils/storage'
import { MAILED_IN, useNotificationTitle } from './useNotificationTitle'
import { useNotificationActions } from './useNotifications'

/** The list of what was missed has it in order, without a sequence. */
type News = Pick<NotificationNews, 'id' | 'event_type' | 'subject' | 'message' | 'order_id'> & {
  sequence?: number | null
}

/** One by one they would be noise. */
const MOST_TOASTS = 3
const MOST_READ = 100
const MOST_KEPT = 50
/** What one tab writes the others read a moment later. */
const HOLD_MS = 250

/**
 * While this user is logged in: what comes in is toasted, once in all tabs, and what is on the screen of it read anew.
 *
 * What was there before is no news. A hidden tab toasts nothing; it does so, unless another one did, when it is seen.
 */
export function useNotificationFeed(userId: number) {
  const { t } = useI18n()
  const live = useLive()
  const queries = useQueryClient()
  const toasts = useToasts()
  const { mark } = useNotificationActions()
  const title = useNotificationTitle()
  const KEY = `forage.toasted.${userId}`
  const sequences = new Map<number, number>()
  let old: number | null = null
  let looking = Promise.resolve()
  let over = false

  /** upTo: all up to it were. ids: those beyond; of two that are stored at once the later one may come first. */
  function toasted() {
    const [upTo = 0, ...ids] = (recall(KEY) ?? '').split(' ').map(Number)
    return { upTo, ids }
  }

  function keepToasted(upTo: number, ids: number[]) {
    const sorted = ids.filter((id) => id > upTo).sort((a, b) => a - b)
    keep(KEY, [sorted.slice(0, -MOST_KEPT).at(-1) ?? upTo, ...sorted.slice(-MOST_KEPT)].join(' '))
  }

  live.onNotification((news) => {
    readAnew()
    void tell([news])
  })
  live.onAuthenticated(() => {
    readAnew()
    catchUp()
  })
  useEventListener(document, 'visibilitychange', () => document.hidden || catchUp())
  if (live.isAuthenticated) catchUp()
  onScopeDispose(() => (over = true))

  /** Of two steps of an order the later one may be pushed first: the earlier one is no news any more. */
  function isNewest({ order_id, sequence }: News) {
    if (order_id === null || sequence == null) return true
    if (sequence < (sequences.get(order_id) ?? 0)) return false
    sequences.set(order_id, sequence)
    return true
  }

  function readAnew() {
    for (const name of ['notifications', 'orders', 'order']) void queries.invalidateQueries({ queryKey: [name] })
  }

  /** One look after the other: the first tells what is old. */
  function catchUp() {
    looking = looking.then(look)
  }

  async function look() {
    if (document.hidden && old !== null) return
    try {
      if (old === null) old = await newest()
      else await tellMissed(Math.max(old, toasted().upTo))
    } catch (error) {
      // It is asked again when the feed, or the reader, comes back the next time.
      if (!(error instanceof Problem)) throw error
    }
  }

  async function newest() {
    const { notifications } = await listNotifications({ page_size: 1 })
    return notifications[0]?.id ?? 0
  }

  async function tellMissed(after: number) {
    const { notifications, total } = await listNotifications({ after_id: after, page_size: MOST_READ })
    if (!total) return
    const unread = total - notifications.length
    await tell(notifications, unread && { count: unread, upTo: await newest() })
  }

  /** more: those that are missing in `news`. */
  function tell(news: News[], more: { count: number; upTo: number } | 0 = 0) {
    return alone(() => {
      const { upTo, ids } = toasted()
      const fresh = news.filter(({ id }) => id > upTo && !ids.includes(id))
      if (!fresh.length || document.hidden || over) return
      keepToasted(more ? more.upTo : upTo, [...ids, ...fresh.map(({ id }) => id)])
      const shown = fresh.filter(isNewest)
      const count = shown.length + (more ? more.count : 0)
      if (count > MOST_TOASTS) toastSum(count)
      else shown.forEach(toast)
    })
  }

  /** Web Locks span tabs, but only https and localhost have them. */
  async function alone(work: () => void) {
    if (!navigator.locks) return work()
    await navigator.locks.request(KEY, () => {
      work()
      return new Promise((done) => setTimeout(done, HOLD_MS))
    })
  }

  function toast(news: News) {
    const { id, message, order_id } = news
    const link = order_id
      ? {
          to: { name: 'order', params: { id: order_id } },
          label: t('notifications.showOrder'),
          run: () => mark.mutate({ id, read: true }),
        }
      : undefined
    toasts.show({ kind: 'info', title: title(news), text: message, textLang: MAILED_IN, link })
  }

  function toastSum(count: number) {
    const link = { to: { name: 'notifications' }, label: t('notifications.showAll') }
    toasts.show({ kind: 'info', title: t('notifications.missed', { n: count }), link })
  }
}
