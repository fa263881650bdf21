import { useI18n } from 'vue-i18n'
import { isMailable } from '@/utils/address'
import { isName, lengthOf } from '@/utils/names'

/** As contracts/users.py has them. */
export const MIN_PASSWORD_LENGTH = 8
const MAX_PASSWORD_LENGTH = 128
const MAX_USERNAME_LENGTH = 50

/** What looks the same is the same. */
export const passwordLength = (password: string) => lengthOf(password, 'NFKC')

/** What is wrong with a field, in a sentence, as far as that can be told without asking. */
export function useAccountChecks() {
  const { t } = useI18n()

  const filled = (value: string) => (value ? undefined : t('field.required'))

  const email = (value: string) =>
    filled(value.trim()) ?? (/^[^\s@]+@[^\s@]+\.[^\s@]+$/.test(value.trim()) ? undefined : t('account.refused.email'))

  /** Older accounts may have addresses that a new one may not. */
  const newEmail = (value: string) =>
    email(value) ?? (isMailable(value.trim()) ? undefined : t('account.refused.email'))

  function username(value: string) {
    const isFine = isName(value.trim()) && lengthOf(value.trim(), 'NFKC') <= MAX_USERNAME_LENGTH
    return filled(value.trim()) ?? (isFine ? undefined : t('account.refused.username'))
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

  return { filled, email, newEmail, username, newPassword }
}
