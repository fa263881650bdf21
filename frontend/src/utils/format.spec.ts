import { expect, test, vi } from 'vitest'
import { formatDate, formatPrice } from './format'

test("dates are formatted for the browser's region", () => {
  vi.spyOn(navigator, 'languages', 'get').mockReturnValue(['fr-FR', 'en-GB', 'en'])

  expect(formatDate('2026-11-24T12:00:00Z')).toBe('24 Nov 2026')
})

test('without a matching region, dates are formatted for the language', () => {
  vi.spyOn(navigator, 'languages', 'get').mockReturnValue(['fr-FR'])

  expect(formatDate('2026-11-24T12:00:00Z')).toBe('Nov 24, 2026')
})

test("a price beyond a float's precision keeps every cent", () => {
  expect(formatPrice('9007199254740993.01')).toBe('€9,007,199,254,740,993.01')
})
