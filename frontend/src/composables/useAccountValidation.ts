import { useI18n } from 'vue-i18n'
import { isDeliverableEmail } from '@/utils/emailAddress'
import { characterCount, isVisibleLine } from '@/utils/visibleText'

/** The limits of contracts/users.py. */
export const MIN_PASSWORD_LENGTH = 8
const MAX_PASSWORD_LENGTH = 128
const MAX_USERNAME_LENGTH = 50

/** Normalized as by the server: characters that look the same are the same. */
export const passwordLength = (password: string) => characterCount(password, 'NFKC')

/** Checks of an account's fields without a request. Each returns an error sentence or undefined. */
export function useAccountValidation() {
  const { t } = useI18n()

  const required = (value: string) => (value ? undefined : t('field.required'))

  const email = (value: string) =>
    required(value.trim()) ?? (/^[^\s@]+@[^\s@]+\.[^\s@]+$/.test(value.trim()) ? undefined : t('account.refused.email'))

  /** Stricter than `email`, since older accounts may have addresses that are no longer accepted. */
  const newEmail = (value: string) =>
    email(value) ?? (isDeliverableEmail(value.trim()) ? undefined : t('account.refused.email'))

  function username(value: string) {
    const isValid = isVisibleLine(value.trim()) && characterCount(value.trim(), 'NFKC') <= MAX_USERNAME_LENGTH
    return required(value.trim()) ?? (isValid ? undefined : t('account.refused.username'))
  }

  /** known: public values of the account, which make bad passwords. */
  function newPassword(password: string, ...known: string[]) {
    const length = passwordLength(password)
    if (!password) return t('field.required')
    if (length < MIN_PASSWORD_LENGTH) return t('account.password.short', { n: MIN_PASSWORD_LENGTH })
    if (length > MAX_PASSWORD_LENGTH) return t('account.password.long', { n: MAX_PASSWORD_LENGTH })
    const isKnown = known.some((word) => word.trim().toLowerCase() === password.toLowerCase())
    return isKnown ? t('account.password.known') : undefined
  }

  return { required, email, newEmail, username, newPassword }
}
