import { useQueryClient } from '@tanstack/vue-query'
import { useEventListener } from '@vueuse/core'
import { onScopeDispose } from 'vue'
import { useI18n } from 'vue-i18n'
import type { Notification } from '@/api/client'
import { listNotifications } from '@/api/notifications'
import { Problem } from '@/api/problem'
import { type PushedNotification, useLiveFeed } from '@/stores/liveFeed'
import { useToasts } from '@/stores/toasts'
import { getStored, setStored } from '@/utils/storage'
import { MAIL_LANGUAGE, useNotificationTitle } from './useNotificationTitle'
import { useNotificationActions } from './useNotifications'

/** Pushed, or listed as missed. The list is in order and has no sequence. */
type Announcement = Pick<Notification, 'id' | 'event_type' | 'subject' | 'message' | 'order_id'> & {
  sequence?: PushedNotification['sequence']
}

/** More are summed up in one. */
const MAX_TOASTS = 3
const PAGE_SIZE = 100
const MAX_STORED_IDS = 50
/** How long other tabs may take to see a write to localStorage. */
const LOCK_HOLD_MS = 250

/**
 * Shows each new notification of the user as a toast, in one of all tabs, and refetches what it changes.
 *
 * Notifications from before the tab was opened are not shown. A hidden tab shows its toasts once it is visible, unless another
 * tab did.
 */
export function useNotificationToasts(userId: number) {
  const { t } = useI18n()
  const live = useLiveFeed()
  const queries = useQueryClient()
  const toasts = useToasts()
  const { mark } = useNotificationActions()
  const title = useNotificationTitle()
  const storageKey = `forage.toasted.${userId}`
  const sequences = new Map<number, number>()
  let lastSeenId: number | null = null
  let catchUps = Promise.resolve()
  let isDisposed = false

  /** upTo: all ids up to it were toasted. ids: later ones, since a later notification may be pushed first. */
  function readToasted() {
    const [upTo = 0, ...ids] = (getStored(storageKey) ?? '').split(' ').map(Number)
    return { upTo, ids }
  }

  function storeToasted(upTo: number, ids: number[]) {
    const sorted = ids.filter((id) => id > upTo).sort((a, b) => a - b)
    setStored(storageKey, [sorted.slice(0, -MAX_STORED_IDS).at(-1) ?? upTo, ...sorted.slice(-MAX_STORED_IDS)].join(' '))
  }

  live.onNotification((pushed) => {
    refetch()
    void announce([pushed])
  })
  live.onAuthenticated(() => {
    refetch()
    catchUp()
  })
  useEventListener(document, 'visibilitychange', () => document.hidden || catchUp())
  if (live.isAuthenticated) catchUp()
  onScopeDispose(() => (isDisposed = true))

  /** False for an order's step that is pushed after a later step. */
  function isNewest({ order_id, sequence }: Announcement) {
    if (order_id === null || sequence === undefined) return true
    if (sequence < (sequences.get(order_id) ?? 0)) return false
    sequences.set(order_id, sequence)
    return true
  }

  function refetch() {
    for (const name of ['notifications', 'orders', 'order']) void queries.invalidateQueries({ queryKey: [name] })
  }

  /** Catches up one at a time: the first run only finds the newest existing notification. */
  function catchUp() {
    catchUps = catchUps.then(doCatchUp)
  }

  async function doCatchUp() {
    if (document.hidden && lastSeenId !== null) return
    try {
      if (lastSeenId === null) lastSeenId = await newestId()
      else await announceMissed(Math.max(lastSeenId, readToasted().upTo))
    } catch (error) {
      // The next reconnect, or return to the tab, tries again.
      if (!(error instanceof Problem)) throw error
    }
  }

  async function newestId() {
    const { notifications } = await listNotifications({ page_size: 1 })
    return notifications[0]?.id ?? 0
  }

  async function announceMissed(after: number) {
    const { notifications, total } = await listNotifications({ after_id: after, page_size: PAGE_SIZE })
    if (!total) return
    const unread = total - notifications.length
    await announce(notifications, unread && { count: unread, upTo: await newestId() })
  }

  /** more: how many are missing in `found`, and the newest id of them. */
  function announce(found: Announcement[], more: { count: number; upTo: number } | 0 = 0) {
    return withLock(() => {
      const { upTo, ids } = readToasted()
      const unannounced = found.filter(({ id }) => id > upTo && !ids.includes(id))
      if (!unannounced.length || document.hidden || isDisposed) return
      storeToasted(more ? more.upTo : upTo, [...ids, ...unannounced.map(({ id }) => id)])
      const shown = unannounced.filter(isNewest)
      const count = shown.length + (more ? more.count : 0)
      if (count > MAX_TOASTS) showSummary(count)
      else shown.forEach(showToast)
    })
  }

  /** One tab at a time, where Web Locks exist (https and localhost). */
  async function withLock(work: () => void) {
    if (!navigator.locks) return work()
    await navigator.locks.request(storageKey, () => {
      work()
      return new Promise((done) => setTimeout(done, LOCK_HOLD_MS))
    })
  }

  function showToast(announcement: Announcement) {
    const { id, message, order_id } = announcement
    const link = order_id
      ? {
          to: { name: 'order', params: { id: order_id } },
          label: t('notifications.showOrder'),
          run: () => mark.mutate({ id, read: true }),
        }
      : undefined
    toasts.show({ kind: 'info', title: title(announcement), text: message, textLang: MAIL_LANGUAGE, link })
  }

  function showSummary(count: number) {
    const link = { to: { name: 'notifications' }, label: t('notifications.showAll') }
    toasts.show({ kind: 'info', title: t('notifications.missed', { n: count }), link })
  }
}
