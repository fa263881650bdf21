import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import de from './de'
import deAdmin from './de/admin.json'
import en from './en'
import enAdmin from './en/admin.json'

type Tree = { [key: string]: string | Tree }

const SOURCES = 'src'

function flat(tree: Tree, prefix = ''): [string, string][] {
  return Object.entries(tree).flatMap(([key, value]) =>
    typeof value === 'string' ? [[prefix + key, value] as [string, string]] : flat(value, `${prefix}${key}.`),
  )
}

const english = flat({ ...en, admin: enAdmin })
const german = flat({ ...de, admin: deAdmin })

const blanks = (text: string) => [...new Set(text.match(/\{\w+\}/g))].sort()

function* sources(folder = SOURCES): Generator<string> {
  for (const name of readdirSync(folder)) {
    const path = join(folder, name)
    if (statSync(path).isDirectory()) yield* sources(path)
    else if (/\.(vue|ts)$/.test(name) && !name.endsWith('.spec.ts')) yield readFileSync(path, 'utf8')
  }
}

test('both languages have the same keys', () => {
  expect(german.map(([key]) => key).sort()).toEqual(english.map(([key]) => key).sort())
})

test('a message has the same placeholders in both languages', () => {
  const other = new Map(german)

  // The English texts are the mail's subject.
  const ours = english.filter(([key]) => !key.startsWith('notifications.title.'))
  const differing = ours.filter(([key, text]) => String(blanks(text)) !== String(blanks(other.get(key) ?? '')))

  expect(differing).toEqual([])
})

test('every key used exists, and every key that exists is used', () => {
  const text = [...sources()].join('\n')
  const known = new Set(english.map(([key]) => key))
  const asked = [...text.matchAll(/\bt\(\s*['"]([\w.-]+)['"]/g)].map(([, key]) => key!)
  // A template such as t(`status.${status}`) uses every key that matches it.
  const alike = [...text.matchAll(/`([\w-]+\.(?:[\w.-]|\$\{[^{}]*\})*)`/g)].map(
    ([, key]) => new RegExp(`^${key!.replace(/\$\{[^{}]*\}/g, '[\\w-]+')}$`),
  )
  const named = new Set([...text.matchAll(/['"]([\w-]+(?:\.[\w-]+)+)['"]/g)].map(([, key]) => key!))

  expect(asked.filter((key) => !known.has(key))).toEqual([])
  expect([...known].filter((key) => !named.has(key) && !alike.some((pattern) => pattern.test(key)))).toEqual([])
})
