// What was chosen, or else what the system says. src/composables/useTheme.ts keeps it so from here on.
let chosen
try {
  chosen = localStorage.getItem('forage.theme')
} catch {
  // The browser keeps nothing, since its reader forbade it.
}
const dark = chosen === 'dark' || (chosen !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches)
document.documentElement.classList.toggle('dark', dark)
