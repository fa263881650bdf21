import { useI18n } from 'vue-i18n'
import { isDeliverableEmail } from '@/utils/emailAddress'
import { characterCount, isVisibleLine } from '@/utils/visibleText'

/** As contracts/users.py has them. */
export const MIN_PASSWORD_LENGTH = 8
const MAX_PASSWORD_LENGTH = 128
const MAX_USERNAME_LENGTH = 50

/** What looks the same is the same. */
export const passwordLength = (password: string) => characterCount(password, 'NFKC')

/** What is wrong with a field, in a sentence, as far as that can be told without asking. */
export function useAccountValidation() {
  const { t } = useI18n()

  const required = (value: string) => (value ? undefined : t('field.required'))

  const email = (value: string) =>
    required(value.trim()) ?? (/^[^\s@]+@[^\s@]+\.[^\s@]+$/.test(value.trim()) ? undefined : t('account.refused.email'))

  /** Older accounts may have addresses that a new one may not. */
  const newEmail = (value: string) =>
    email(value) ?? (isDeliverableEmail(value.trim()) ? undefined : t('account.refused.email'))

  function username(value: string) {
    const isValid = isVisibleLine(value.trim()) && characterCount(value.trim(), 'NFKC') <= MAX_USERNAME_LENGTH
    return required(value.trim()) ?? (isValid ? undefined : t('account.refused.username'))
  }

  /** known: what everybody knows of the account. */
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
