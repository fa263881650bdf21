import { afterEach, expect, test, vi } from 'vitest'
import { drop, keep, recall } from './storage'

afterEach(() => {
  vi.restoreAllMocks()
  drop('forage.x')
})

const refuse = (name: string) => () => {
  throw new DOMException('', name)
}

test('what is kept is there on the next visit, until it is dropped', () => {
  keep('forage.x', 'one')

  expect(localStorage.getItem('forage.x')).toBe('one')
  expect(recall('forage.x')).toBe('one')

  drop('forage.x')
  expect(recall('forage.x')).toBeNull()
})

test('what does not fit into a full storage lasts as long as the page', () => {
  keep('forage.x', 'one')
  const full = vi.spyOn(Storage.prototype, 'setItem').mockImplementation(refuse('QuotaExceededError'))

  keep('forage.x', 'two')
  expect(recall('forage.x')).toBe('two')

  full.mockRestore()
  keep('forage.x', 'three')
  expect(recall('forage.x')).toBe('three')
})

test('a browser that forbids its storage has what this page keeps', () => {
  vi.spyOn(window, 'localStorage', 'get').mockImplementation(refuse('SecurityError'))

  expect(recall('forage.x')).toBeNull()
  keep('forage.x', 'one')
  expect(recall('forage.x')).toBe('one')
  drop('forage.x')

  expect(recall('forage.x')).toBeNull()
})
