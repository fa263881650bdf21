import { render, screen } from '@testing-library/vue'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { lazyComponent } from './lazyComponent'

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

test('a failed load is retried while the page stays usable', async () => {
  let isOnline = false
  const Late = lazyComponent(async () => {
    if (!isOnline) throw new TypeError('Failed to fetch dynamically imported module')
    return { template: '<p>Here</p>' }
  })
  render({ components: { Late }, template: '<h1>The page</h1><Late />' })

  await vi.advanceTimersByTimeAsync(60_000)
  expect(screen.getByRole('heading')).toBeVisible()
  expect(screen.queryByText('Here')).toBeNull()

  isOnline = true
  await vi.advanceTimersByTimeAsync(30_000)
  expect(screen.getByText('Here')).toBeVisible()
})
