import '@testing-library/jest-dom/vitest'
import { cleanup, configure } from '@testing-library/vue'
import { afterEach, vi } from 'vitest'

// Generous, since waiting ends with its condition. vite.config.ts sets the other two timeouts.
const WAIT_MS = 15_000
configure({ asyncUtilTimeout: WAIT_MS })
const { waitFor } = vi
vi.waitFor = (condition) => waitFor(condition, { timeout: WAIT_MS })

afterEach(() => {
  cleanup()
  localStorage.clear()
})

// Node's Request, unlike a browser's, rejects a relative URL.
globalThis.Request = class extends Request {
  constructor(input: RequestInfo | URL, init?: RequestInit) {
    super(typeof input === 'string' ? new URL(input, location.href) : input, init)
  }
}
