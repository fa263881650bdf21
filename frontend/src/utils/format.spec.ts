import { expect, test, vi } from 'vitest'
import { formatDate, formatPrice } from './format'

test('dates are written as in the country of the reader', () => {
  vi.spyOn(navigator, 'languages', 'get').mockReturnValue(['fr-FR', 'en-GB', 'en'])

  expect(formatDate('2026-11-24T12:00:00Z')).toBe('24 Nov 2026')
})

test('and without one that speaks the language, as the language does', () => {
  vi.spyOn(navigator, 'languages', 'get').mockReturnValue(['fr-FR'])

  expect(formatDate('2026-11-24T12:00:00Z')).toBe('Nov 24, 2026')
})

test('a price keeps every cent of what no float could hold', () => {
  expect(formatPrice('9007199254740993.01')).toBe('€9,007,199,254,740,993.01')
})
