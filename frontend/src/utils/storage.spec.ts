import { afterEach, expect, test, vi } from 'vitest'
import { getStored, removeStored, setStored } from './storage'

afterEach(() => {
  vi.restoreAllMocks()
  removeStored('forage.x')
})

const refuse = (name: string) => () => {
  throw new DOMException('', name)
}

test('a stored value is kept until it is removed', () => {
  setStored('forage.x', 'one')

  expect(localStorage.getItem('forage.x')).toBe('one')
  expect(getStored('forage.x')).toBe('one')

  removeStored('forage.x')
  expect(getStored('forage.x')).toBeNull()
})

test('a value that does not fit into storage lasts as long as the page', () => {
  setStored('forage.x', 'one')
  const full = vi.spyOn(Storage.prototype, 'setItem').mockImplementation(refuse('QuotaExceededError'))

  setStored('forage.x', 'two')
  expect(getStored('forage.x')).toBe('two')

  full.mockRestore()
  setStored('forage.x', 'three')
  expect(getStored('forage.x')).toBe('three')
})

test('with forbidden storage, values last as long as the page', () => {
  vi.spyOn(window, 'localStorage', 'get').mockImplementation(refuse('SecurityError'))

  expect(getStored('forage.x')).toBeNull()
  setStored('forage.x', 'one')
  expect(getStored('forage.x')).toBe('one')
  removeStored('forage.x')

  expect(getStored('forage.x')).toBeNull()
})
