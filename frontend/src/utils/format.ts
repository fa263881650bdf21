import { i18n } from '@/i18n'

const CURRENCY = 'EUR'

/** The chosen language, with the region if the browser names one. */
function locale() {
  const chosen = i18n.global.locale.value
  return navigator.languages.find((tag) => tag.split('-')[0] === chosen) ?? chosen
}

/** amount: the API's decimal string. */
export const formatPrice = (amount: string) =>
  new Intl.NumberFormat(locale(), { style: 'currency', currency: CURRENCY }).format(amount as unknown as number)

export const formatNumber = (value: number) => new Intl.NumberFormat(locale()).format(value)

export const formatDate = (time: string) =>
  new Intl.DateTimeFormat(locale(), { dateStyle: 'medium' }).format(new Date(time))

export const formatDateTime = (time: string) =>
  new Intl.DateTimeFormat(locale(), { dateStyle: 'medium', timeStyle: 'short' }).format(new Date(time))
