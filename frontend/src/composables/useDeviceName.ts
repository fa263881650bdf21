import { useI18n } from 'vue-i18n'
import { parseUserAgent } from '@/utils/userAgent'

export function useDeviceName() {
  const { t } = useI18n()

  /** Describes a User-Agent header, like “Firefox on Windows”. */
  function deviceName(userAgent: string | null): string {
    const { browser, system } = parseUserAgent(userAgent ?? '')
    if (browser && system) return t('account.sessions.device', { browser, system })
    return browser ?? system ?? t('account.sessions.unknown')
  }

  return { deviceName }
}
