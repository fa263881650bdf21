import { defineConfig, devices } from '@playwright/test'

// Debian's Chromium. As root, for example in a container, it has no sandbox.
const browser = { executablePath: '/usr/bin/chromium', args: process.getuid?.() === 0 ? ['--no-sandbox'] : [] }
const SCREENSHOTS = /screenshots\.spec\.ts/
const OUTAGE = /outage\.spec\.ts/

/** `npx playwright test` runs the browser tests against a complete shop, started by e2e/globalSetup.ts. */
export default defineConfig({
  testDir: 'e2e',
  globalSetup: './e2e/globalSetup.ts',
  outputDir: 'test-results',
  fullyParallel: true,
  workers: 2,
  forbidOnly: true,
  // Generous, since every wait ends with its condition, also on a slow machine.
  timeout: 180_000,
  expect: { timeout: 30_000 },
  reporter: [['list']],
  use: {
    ...devices['Desktop Chrome'],
    launchOptions: browser,
    locale: 'en-GB',
    actionTimeout: 30_000,
    trace: 'retain-on-failure',
  },
  projects: [
    { name: 'journeys', testIgnore: [SCREENSHOTS, OUTAGE] },
    // They stop the shop, so they run after the others.
    { name: 'outages', testMatch: OUTAGE, dependencies: ['journeys'] },
    { name: 'screenshots', testMatch: SCREENSHOTS },
  ],
})
