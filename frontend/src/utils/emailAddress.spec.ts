import { expect, test } from 'vitest'
import addresses from '../../../tests/contracts/addresses.json'
import { isDeliverableEmail } from './emailAddress'

test.each(addresses.taken)('an address that the shop accepts is accepted: %s', (address) => {
  expect(isDeliverableEmail(address)).toBe(true)
})

test.each(addresses.refused)('an address that the shop refuses is refused: %s', (address) => {
  expect(isDeliverableEmail(address)).toBe(false)
})
