import './style.css'
import { VueQueryPlugin } from '@tanstack/vue-query'
import { createPinia } from 'pinia'
import { createApp } from 'vue'
import App from './App.vue'
import { i18n, preferredLocale, useLocale } from './i18n'
import { queries } from './queries'
import { router } from './router'
import { useLive } from './stores/live'

// A shop in English is better than none.
await useLocale(preferredLocale()).catch(() => useLocale('en'))

const app = createApp(App)
app.use(createPinia()).use(VueQueryPlugin, { queryClient: queries }).use(i18n).use(router)
app.mount('#app')
useLive().open()
