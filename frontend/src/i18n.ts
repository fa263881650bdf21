import { createI18n } from 'vue-i18n'
import en from './locales/en'
import { getStored, setStored } from './utils/storage'

export const LOCALES = { en: 'English', de: 'Deutsch' } as const
export type Locale = keyof typeof LOCALES
type Messages = typeof en

const STORAGE_KEY = 'forage.locale'

const messageLoaders: Record<Exclude<Locale, 'en'>, () => Promise<{ default: Messages }>> = {
  de: () => import('./locales/de'),
}
// The back office's messages, loaded only there.
const adminMessageLoaders: Record<Locale, () => Promise<{ default: object }>> = {
  en: () => import('./locales/en/admin.json'),
  de: () => import('./locales/de/admin.json'),
}
let isAdminLoaded = false

export const i18n = createI18n({
  legacy: false,
  locale: 'en' as Locale,
  fallbackLocale: 'en',
  messages: { en } as Record<string, Messages>,
})

const isLocale = (name: string): name is Locale => name in LOCALES

/** The chosen language, else the first of the browser's languages that we have. */
export function preferredLocale(): Locale {
  const candidates = [getStored(STORAGE_KEY) ?? '', ...navigator.languages.map((tag) => tag.split('-')[0] ?? '')]
  return candidates.find(isLocale) ?? 'en'
}

let wanted: Locale

/** Raises when the messages can't be loaded. The language then stays as it was. */
export async function setLocale(locale: Locale) {
  wanted = locale
  if (locale !== 'en') i18n.global.setLocaleMessage(locale, (await messageLoaders[locale]()).default)
  if (isAdminLoaded) await mergeAdmin(locale)
  // The latest choice wins, even if its messages load first.
  if (wanted !== locale) return
  i18n.global.locale.value = locale
  document.documentElement.lang = locale
  document.documentElement.dir = new Intl.Locale(locale).maximize().script === 'Arab' ? 'rtl' : 'ltr'
}

export async function chooseLocale(locale: Locale) {
  await setLocale(locale)
  setStored(STORAGE_KEY, locale)
}

export async function loadAdminMessages() {
  isAdminLoaded = true
  await Promise.all([...new Set<Locale>(['en', i18n.global.locale.value as Locale])].map(mergeAdmin))
}

async function mergeAdmin(locale: Locale) {
  i18n.global.mergeLocaleMessage(locale, { admin: (await adminMessageLoaders[locale]()).default })
}
