import '@testing-library/jest-dom/vitest'
import { cleanup, configure } from '@testing-library/vue'
import { afterEach, vi } from 'vitest'

// All that waits does so for a condition, however slow the machine is. vite.config.ts has the other two.
const WAIT_MS = 15_000
configure({ asyncUtilTimeout: WAIT_MS })
const { waitFor } = vi
vi.waitFor = (condition) => waitFor(condition, { timeout: WAIT_MS })

afterEach(() => {
  cleanup()
  localStorage.clear()
})

// A browser takes an address without a host; Node's Request does not.
globalThis.Request = class extends Request {
  constructor(input: RequestInfo | URL, init?: RequestInit) {
    super(typeof input === 'string' ? new URL(input, location.href) : input, init)
  }
}
