import { useI18n } from 'vue-i18n'
import { Problem } from '@/api/problem'

/** Error messages in the chosen language. */
export function useErrorMessage() {
  const { t, te } = useI18n()

  function errorMessage(error: unknown): string {
    if (!(error instanceof Problem)) throw error
    const key = `problem.${error.type}`
    if (te(key, 'en')) return t(key, { seconds: error.retryAfterSeconds ?? 60 })
    return t('problem.unknown', { id: error.body.request_id ?? '–' })
  }

  return { errorMessage }
}
