import { expect, test } from 'vitest'
import { totalPrice } from './money'

test('prices are added up exactly, where floats would be a cent off', () => {
  expect(totalPrice([{ price: '0.10', quantity: 3 }])).toBe('0.30')
  expect(
    totalPrice([
      { price: '1.15', quantity: 100 },
      { price: '0.07', quantity: 1 },
    ]),
  ).toBe('115.07')
})

test('an empty cart costs nothing', () => {
  expect(totalPrice([])).toBe('0.00')
})

test('cents keep their leading zero', () => {
  expect(totalPrice([{ price: '0.05', quantity: 1 }])).toBe('0.05')
})

test("sums beyond a number's precision stay exact", () => {
  expect(totalPrice([{ price: '9999999999.99', quantity: 10_000 }])).toBe('99999999999900.00')
})
