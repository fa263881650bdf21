import { api, type Notification, unwrap } from './client'

export type NotificationQuery = {
  all?: boolean
  unread?: boolean
  status?: Notification['status']
  recipient?: string
  order_id?: number
  after_id?: number
  page?: number
  page_size?: number
}

export const listNotifications = (query: NotificationQuery, signal?: AbortSignal) =>
  unwrap(api.GET('/notifications', { params: { query }, signal }))

export const markRead = (id: number, read: boolean) =>
  unwrap(api.PATCH('/notifications/{notification_id}', { params: { path: { notification_id: id } }, body: { read } }))

export const retryNotification = (id: number) =>
  unwrap(api.POST('/notifications/retry/{notification_id}', { params: { path: { notification_id: id } } }))

export const isRetriable = ({ status }: Notification) => status === 'failed' || status === 'uncertain'
