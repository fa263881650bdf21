import { defineConfig, devices } from '@playwright/test'

// Debian's Chromium. As root, as in a container, it can't make its sandbox.
const browser = { executablePath: '/usr/bin/chromium', args: process.getuid?.() === 0 ? ['--no-sandbox'] : [] }
const SCREENSHOTS = /screenshots\.spec\.ts/
const OUTAGE = /outage\.spec\.ts/

/** `npx playwright test`: the journeys, against a whole shop that e2e/shop.ts starts. */
export default defineConfig({
  testDir: 'e2e',
  globalSetup: './e2e/globalSetup.ts',
  outputDir: 'test-results',
  fullyParallel: true,
  workers: 2,
  forbidOnly: true,
  // All waits are for a condition; these end only those that are in vain, on the slowest of machines, too.
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
    // They take the shop away from everybody, and so come when all others are done.
    { name: 'outages', testMatch: OUTAGE, dependencies: ['journeys'] },
    { name: 'screenshots', testMatch: SCREENSHOTS },
  ],
})
