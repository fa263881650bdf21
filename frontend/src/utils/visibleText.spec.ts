import { expect, test } from 'vitest'
import { characterCount, isVisibleLine } from './visibleText'

test.each(['TV', '米酒', 'Crème', "O'Hara & 100 %", 'می\u200cخواهم', '👩🏽\u200d🌾 ❤\ufe0f\u200d🔥'])(
  '%s is a visible line',
  (name) => {
    expect(isVisibleLine(name)).toBe(true)
  },
)

test.each([
  '\u202eright to left',
  'admin\u200b',
  'soft\u00adhyphen',
  'a\u200d',
  '\u200cabc',
  '\u{e0061} tag',
  '\u3164',
  '\u2800',
  '\u0301',
  'two\nlines',
])('%j is not a visible line', (name) => {
  expect(isVisibleLine(name)).toBe(false)
})

test('characters are counted after normalization', () => {
  expect(characterCount('e\u0301🍄')).toBe(2)
  expect(characterCount('ﬁ', 'NFKC')).toBe(2)
})
