import AxeBuilder from '@axe-core/playwright'
import { type APIRequestContext, expect, type Locator, type Page, request, test as base } from '@playwright/test'
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export { expect }

export const DEMO_PASSWORD = 'chanterelle'
export const PASSWORD = 'a walk in the woods'
const RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']

export type Customer = { email: string; username: string; password: string; api: Api }
export type Product = { id: number; name: string; price: string; stock_quantity: number; sku: string }

/** The HTTP API with an access token. Every error status fails the test. */
export class Api {
  constructor(
    private readonly context: APIRequestContext,
    private readonly token: string | null = null,
  ) {}

  async send<Answer = Record<string, unknown>>(method: string, path: string, data?: object): Promise<Answer> {
    const headers: Record<string, string> = this.token ? { Authorization: `Bearer ${this.token}` } : {}
    const answer = await this.context.fetch(`${process.env.SHOP_URL}/api${path}`, { method, data, headers })
    expect(answer.ok(), `${method} ${path}: ${await answer.text()}`).toBe(true)
    return answer.status() === 204 ? (undefined as Answer) : await answer.json()
  }

  async as(email: string, password: string): Promise<Api> {
    const { access_token } = await this.send<{ access_token: string }>('POST', '/users/login', { email, password })
    return new Api(this.context, access_token)
  }
}

type Fixtures = {
  guest: Api
  admin: Api
  /** A new customer for each test. */
  customer: Customer
  newProduct: (fields?: object) => Promise<Product>
  mailTo: (address: string, subject: RegExp) => Promise<Mail>
  printsPageOnFailure: void
}
export type Mail = { subject: string; to: { address: string }[]; text: string }

let made = 0
const unique = () => `${process.pid}-${Date.now()}-${++made}`

export const test = base.extend<Fixtures>({
  baseURL: ({}, use) => use(process.env.SHOP_URL),
  guest: async ({}, use) => {
    const context = await request.newContext()
    await use(new Api(context))
    await context.dispose()
  },
  admin: async ({ guest }, use) => use(await guest.as('admin@forage.example', DEMO_PASSWORD)),
  customer: async ({ guest }, use) => {
    const name = unique()
    const customer = { email: `p-${name}@forage.example`, username: `p-${name}`, password: PASSWORD }
    await guest.send('POST', '/users/register', customer)
    await use({ ...customer, api: await guest.as(customer.email, PASSWORD) })
  },
  newProduct: async ({ admin }, use) => {
    await use((fields = {}) => {
      const sku = `E2E-${unique()}`.toUpperCase()
      return admin.send<Product>('POST', '/products', {
        name: `Test truffle ${sku}`,
        price: '10.00',
        stock_quantity: 20,
        sku,
        ...fields,
      })
    })
  },
  mailTo: async ({}, use) => {
    await use(async (address, subject) => {
      let found: Mail | undefined
      await expect(async () => {
        const mails: Mail[] = await (await fetch(process.env.SHOP_MAILS!)).json()
        found = mails.find((mail) => subject.test(mail.subject) && mail.to.some((to) => to.address === address))
        expect(found, `a mail to ${address} like ${subject}`).toBeDefined()
      }).toPass({ timeout: 60_000 })
      return found!
    })
  },
  // The name of a failed step rarely explains the failure.
  printsPageOnFailure: [
    async ({ page }, use, info) => {
      await use()
      if (info.status !== info.expectedStatus)
        console.log(`${info.title}\n${page.url()}\n${await page.locator('body').ariaSnapshot()}`)
    },
    { auto: true },
  ],
})

/** Logs in with the form. */
export async function logIn(page: Page, { email, password }: { email: string; password: string }) {
  await page.goto('/login')
  await page.getByLabel('Email').fill(email)
  await page.getByLabel('Password', { exact: true }).fill(password)
  await page.getByRole('main').getByRole('button', { name: 'Log in', exact: true }).click()
  await expect(page.getByRole('button', { name: 'Account', exact: true })).toBeVisible()
}

/** The first link in a mail to that path, as a path of the shop. */
export function linkIn(mail: Mail, path: string): string {
  const link = mail.text.match(new RegExp(`${process.env.SHOP_URL}(${path}\\S*)`))
  expect(link, mail.text).not.toBeNull()
  return link![1]!
}

/** Checks WCAG 2.2 AA with axe, in both themes. */
export async function expectAccessible(page: Page) {
  for (const theme of ['light', 'dark'] as const) {
    await page.emulateMedia({ colorScheme: theme, reducedMotion: 'reduce' })
    await expect(page.locator('html')).toHaveClass(theme === 'dark' ? /\bdark\b/ : /^(?!.*\bdark\b)/)
    // Waits for the next paint and the end of colour transitions.
    await page.evaluate(async () => {
      await new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted)))
      await Promise.allSettled(document.getAnimations().map(({ finished }) => finished))
    })
    // Without legacy mode axe opens another page, after which Chromium sometimes stops painting this one.
    const { violations } = await new AxeBuilder({ page }).withTags(RULES).setLegacyMode().analyze()
    const messages = violations.map(
      ({ id, nodes }) =>
        `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join('; ')}`,
    )
    expect(messages, `${page.url()} in the ${theme} theme`).toEqual([])
  }
}

export const scrollsSideways = (page: Page) => page.evaluate(() => document.documentElement.scrollWidth > innerWidth)

/** Kills the gateway with SIGKILL. The supervisor starts it again. */
export function killGateway() {
  let killed = 0
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
      const environment = readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0')
      if (command.includes('gateway') && environment.includes(`FORAGE_COPY=${process.env.SHOP_FOLDER}`))
        killed += Number(process.kill(Number(pid), 'SIGKILL'))
    } catch (error) {
      // The process has ended or belongs to another account.
      if (!['ENOENT', 'EACCES', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
    }
  }
  expect(killed, 'killed gateway processes').toBeGreaterThan(0)
}

/** Runs e2e/direct_access.py with the running shop's settings. */
export function directAccess(...words: string[]) {
  const settings = readFileSync(join(process.env.SHOP_FOLDER!, 'env'), 'utf8').matchAll(/^export (\w+)='(.*)'$/gm)
  const environment = Object.fromEntries([...settings].map(([, name, value]) => [name, value]))
  const python = fileURLToPath(new URL('../../.venv/bin/python', import.meta.url))
  const script = fileURLToPath(new URL('direct_access.py', import.meta.url))
  execFileSync(python, [script, ...words], { env: { ...process.env, ...environment }, stdio: 'pipe' })
}

/** Presses Tab until the target has the focus. */
export async function tabTo(page: Page, target: Locator) {
  await expect(target).toBeVisible()
  for (let steps = 0; steps < 150; steps++) {
    if (await target.evaluate((element) => element === document.activeElement)) return
    await page.keyboard.press('Tab')
  }
  throw new Error(`${target} can't be reached by the keyboard`)
}
