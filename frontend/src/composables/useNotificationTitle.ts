import { useI18n } from 'vue-i18n'
import type { Notification } from '@/api/client'

/** The language that mails are written in, and what is quoted of them. */
export const MAIL_LANGUAGE = 'en'

/** What a notification is called in the reader's language: where that is the mail's, by the mail's own subject. */
export function useNotificationTitle() {
  const { t, te } = useI18n()

  return ({ event_type, subject, order_id }: Pick<Notification, 'event_type' | 'subject' | 'order_id'>): string => {
    const key = `notifications.title.${event_type}`
    return te(key, 'en') ? t(key, { subject, order: order_id ?? '–' }) : subject
  }
}
