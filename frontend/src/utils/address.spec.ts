import { expect, test } from 'vitest'
import addresses from '../../../tests/contracts/addresses.json'
import { isMailable } from './address'

test.each(addresses.taken)('an address that the shop takes is taken: %s', (address) => {
  expect(isMailable(address)).toBe(true)
})

test.each(addresses.refused)('an address that the shop refuses is refused: %s', (address) => {
  expect(isMailable(address)).toBe(false)
})
