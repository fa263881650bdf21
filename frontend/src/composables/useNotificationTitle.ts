import { useI18n } from 'vue-i18n'
import type { Notification } from '@/api/client'

/** The language of the mails, and so of quotations from them. */
export const MAIL_LANGUAGE = 'en'

/** A notification's title in the chosen language. In the mails' language it is the mail's subject. */
export function useNotificationTitle() {
  const { t, te } = useI18n()

  return ({ event_type, subject, order_id }: Pick<Notification, 'event_type' | 'subject' | 'order_id'>): string => {
    const key = `notifications.title.${event_type}`
    return te(key, 'en') ? t(key, { subject, order: order_id ?? '–' }) : subject
  }
}
