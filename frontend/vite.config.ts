import tailwindcss from '@tailwindcss/vite'
import vue from '@vitejs/plugin-vue'
import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'

const gateway = `http://127.0.0.1:${process.env.GATEWAY_PORT ?? 3000}`

const FRAMEWORK = /node_modules\/(@?vue|vue-router|vue-i18n|pinia|openapi-fetch|@tanstack|@intlify|@vueuse)\//
const SHELL =
  /src\/(api\/(?!admin)|stores|utils|locales\/en\/(?!admin)|components\/(Base|Form|Page|Pagination|Error|Empty)(?!Dialog))/

export default defineConfig({
  plugins: [vue(), tailwindcss()],
  resolve: { alias: { '@': fileURLToPath(new URL('src', import.meta.url)) } },
  define: { __VUE_OPTIONS_API__: false, __VUE_I18N_LEGACY_API__: false, __INTLIFY_PROD_DEVTOOLS__: false },
  build: {
    target: 'es2023',
    assetsInlineLimit: 0,
    reportCompressedSize: false,
    rolldownOptions: {
      // Bundles what every page needs into two files instead of thirty.
      output: {
        codeSplitting: {
          groups: [
            { name: 'framework', test: FRAMEWORK },
            { name: 'shell', test: SHELL },
          ],
        },
      },
    },
  },
  server: {
    host: '127.0.0.1',
    port: Number(process.env.FRONTEND_PORT ?? 8080),
    strictPort: true,
    proxy: {
      '/api': { target: gateway, rewrite: (path) => path.slice('/api'.length) },
      '/ws': { target: gateway, ws: true },
    },
  },
  test: {
    environment: 'jsdom',
    include: ['src/**/*.spec.ts'],
    setupFiles: ['src/testing/setup.ts'],
    restoreMocks: true,
    testTimeout: 60_000,
    expect: { poll: { timeout: 15_000 } },
  },
})
