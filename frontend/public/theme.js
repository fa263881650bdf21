// The chosen theme, else the system's. src/composables/useTheme.ts does the same later.
let chosen
try {
  chosen = localStorage.getItem('forage.theme')
} catch {
  // Storage is forbidden.
}
const dark = chosen === 'dark' || (chosen !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches)
document.documentElement.classList.toggle('dark', dark)
