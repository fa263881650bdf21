import { createI18n } from 'vue-i18n'
import en from './locales/en'
import { keep, recall } from './utils/storage'

export const LOCALES = { en: 'English', de: 'Deutsch' } as const
export type Locale = keyof typeof LOCALES
type Messages = typeof en

const KEPT = 'forage.locale'

const others: Record<Exclude<Locale, 'en'>, () => Promise<{ default: Messages }>> = {
  de: () => import('./locales/de'),
}
// The back office's own, for those who enter it.
const admin: Record<Locale, () => Promise<{ default: object }>> = {
  en: () => import('./locales/en/admin.json'),
  de: () => import('./locales/de/admin.json'),
}
let withAdmin = false

export const i18n = createI18n({
  legacy: false,
  locale: 'en' as Locale,
  fallbackLocale: 'en',
  messages: { en } as Record<string, Messages>,
})

const isLocale = (name: string): name is Locale => name in LOCALES

/** What was chosen, or else the first of the browser's languages that we speak. */
export function preferredLocale(): Locale {
  const wished = [recall(KEPT) ?? '', ...navigator.languages.map((tag) => tag.split('-')[0] ?? '')]
  return wished.find(isLocale) ?? 'en'
}

let wanted: Locale

/** Raises when the language's messages can't be loaded; then it stays as it was. */
export async function useLocale(locale: Locale) {
  wanted = locale
  if (locale !== 'en') i18n.global.setLocaleMessage(locale, (await others[locale]()).default)
  if (withAdmin) await mergeAdmin(locale)
  // Of two choices the later one counts, whichever is loaded first.
  if (wanted !== locale) return
  i18n.global.locale.value = locale
  document.documentElement.lang = locale
  document.documentElement.dir = new Intl.Locale(locale).maximize().script === 'Arab' ? 'rtl' : 'ltr'
}

export async function chooseLocale(locale: Locale) {
  await useLocale(locale)
  keep(KEPT, locale)
}

export async function loadAdminMessages() {
  withAdmin = true
  await Promise.all([...new Set<Locale>(['en', i18n.global.locale.value as Locale])].map(mergeAdmin))
}

async function mergeAdmin(locale: Locale) {
  i18n.global.mergeLocaleMessage(locale, { admin: (await admin[locale]()).default })
}
