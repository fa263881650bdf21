import { keepPreviousData, useMutation, useQuery, useQueryClient } from '@tanstack/vue-query'
import { computed, toValue, type MaybeRefOrGetter } from 'vue'
import type { Notification, NotificationPage } from '@/api/client'
import { listNotifications, markRead, type NotificationQuery, retryNotification } from '@/api/notifications'
import { useErrorMessage } from './useErrorMessage'
import { useToasts } from '@/stores/toasts'

const PAGE_SIZE = 100
const CONCURRENCY = 5

export function useNotifications(query: MaybeRefOrGetter<NotificationQuery>) {
  return useQuery({
    queryKey: ['notifications', query],
    queryFn: ({ signal }) => listNotifications(toValue(query), signal),
    placeholderData: keepPreviousData,
  })
}

/** The number of unread notifications; undefined until it is loaded. */
export function useUnreadCount() {
  const { data } = useNotifications({ unread: true, page_size: 1 })
  return computed(() => data.value?.total)
}

/** Changes of notifications. A changed one is replaced in the cached lists, without a refetch. */
export function useNotificationActions() {
  const queries = useQueryClient()
  const toasts = useToasts()
  const { errorMessage } = useErrorMessage()
  const onError = (error: Error) => void toasts.show({ kind: 'error', title: errorMessage(error) })

  function updateCached(changed: Notification) {
    queries.setQueriesData<NotificationPage>(
      { queryKey: ['notifications'] },
      (page) => page && withChanged(page, changed),
    )
    return refetchCount()
  }

  const refetchCount = () => queries.invalidateQueries({ queryKey: ['notifications', { unread: true, page_size: 1 }] })
  const refetchAll = () => queries.invalidateQueries({ queryKey: ['notifications'] })

  const mark = useMutation({
    mutationFn: ({ id, read }: { id: number; read: boolean }) => markRead(id, read),
    onSuccess: updateCached,
    onError,
  })
  const markAll = useMutation({ mutationFn: markAllRead, onSettled: refetchAll, onError })
  const retry = useMutation({
    mutationFn: retryNotification,
    onSuccess: updateCached,
    onError: (error) => {
      onError(error)
      return refetchAll()
    },
  })

  return { mark, markAll, retry }
}

/** Marks those that exist now, not ones that arrive meanwhile. */
async function markAllRead() {
  const { notifications } = await listNotifications({ page_size: 1 })
  const newest = notifications[0]?.id ?? 0
  for (;;) {
    const page = await listNotifications({ unread: true, page_size: PAGE_SIZE })
    const ids = page.notifications.map(({ id }) => id).filter((id) => id <= newest)
    if (!ids.length) return
    for (let at = 0; at < ids.length; at += CONCURRENCY) {
      await Promise.all(ids.slice(at, at + CONCURRENCY).map((id) => markRead(id, true)))
    }
  }
}

function withChanged(page: NotificationPage, changed: Notification): NotificationPage {
  const notifications = page.notifications.map((known) => (known.id === changed.id ? changed : known))
  return { ...page, notifications }
}
