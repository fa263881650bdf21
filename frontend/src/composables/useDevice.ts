import { useI18n } from 'vue-i18n'
import { describeDevice } from '@/utils/device'

export function useDevice() {
  const { t } = useI18n()

  /** A User-Agent header in plain words. */
  function device(userAgent: string | null): string {
    const { browser, system } = describeDevice(userAgent ?? '')
    if (browser && system) return t('account.sessions.device', { browser, system })
    return browser ?? system ?? t('account.sessions.unknown')
  }

  return { device }
}
