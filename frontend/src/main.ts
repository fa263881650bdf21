import './style.css'
import { VueQueryPlugin } from '@tanstack/vue-query'
import { createPinia } from 'pinia'
import { createApp } from 'vue'
import App from './App.vue'
import { i18n, preferredLocale, setLocale } from './i18n'
import { queries } from './queries'
import { router } from './router'
import { useLiveFeed } from './stores/liveFeed'

// If the language can't be loaded, the shop opens in English.
await setLocale(preferredLocale()).catch(() => setLocale('en'))

const app = createApp(App)
app.use(createPinia()).use(VueQueryPlugin, { queryClient: queries }).use(i18n).use(router)
app.mount('#app')
useLiveFeed().open()
