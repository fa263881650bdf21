import { useStorage, usePreferredDark } from '@vueuse/core'
import { computed, watchEffect } from 'vue'

export type Theme = 'system' | 'light' | 'dark'

const theme = useStorage<Theme>('forage.theme', 'system')
const prefersDark = usePreferredDark()
export const isDark = computed(() => theme.value === 'dark' || (theme.value === 'system' && prefersDark.value))

/** public/theme.js does the same before the first paint. */
export function applyTheme() {
  watchEffect(() => document.documentElement.classList.toggle('dark', isDark.value))
}

export const useTheme = () => theme
