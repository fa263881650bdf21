import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, createWriteStream, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const START_TIMEOUT_SECONDS = 180
const PORTS = ['GATEWAY', 'FRONTEND', 'RABBITMQ', 'POSTGRES', 'SMTP', 'MAIL_WEB', 'OIDC'].map((name) => `${name}_PORT`)
// Settings that this terminal may have for another shop.
const UNSET_VARIABLES =
  /^(AMQP_URI|\w+_DB_URI|SMTP_HOST|GOOGLE_\w+|OIDC_ISSUER|JWT_SECRET|FRONTEND_URL|TRUSTED_PROXIES|DEMO_PASSWORD|LOG_FORMAT)$/

/** Starts one shop, as `make run` does, in its own folder and on its own ports. Sets SHOP_* for the tests. */
export default async function startShop() {
  const folder = mkdtempSync(join(tmpdir(), 'forage-journeys-'))
  // PostgreSQL runs as another account, which must be able to enter the folder.
  chmodSync(folder, 0o711)
  const local = join(folder, 'local')
  const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !UNSET_VARIABLES.test(name)))
  const shop = spawn(join(ROOT, '.venv/bin/python'), ['-m', 'dev.run'], {
    cwd: ROOT,
    env: {
      ...environment,
      ...Object.fromEntries(PORTS.map((name) => [name, '0'])),
      LOCAL_DIR: local,
      BCRYPT_ROUNDS: '4',
      RATE_LIMIT_SCALE: '100',
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const log = createWriteStream(join(folder, 'run.log'))
  shop.stdout.pipe(log)
  shop.stderr.pipe(log)
  const output = () => readFileSync(join(folder, 'run.log'), 'utf8')

  async function stop() {
    // A killed process has a signal code and no exit code.
    if (shop.exitCode === null && shop.signalCode === null) {
      shop.kill('SIGTERM')
      await once(shop, 'exit')
    }
    rmSync(folder, { recursive: true, force: true })
  }

  await new Promise<void>((resolve, reject) => {
    const fail = (why: string) => reject(new Error(`${why}: ${output().slice(-4000)}`))
    const timer = setTimeout(
      () => fail(`The shop is not up after ${START_TIMEOUT_SECONDS} s`),
      START_TIMEOUT_SECONDS * 1000,
    )
    shop.stdout.on('data', (lines: Buffer) => lines.includes('Ctrl-C ends it') && (clearTimeout(timer), resolve()))
    shop.once('exit', () => (clearTimeout(timer), fail('The shop ended')))
  }).catch(async (error) => {
    await stop()
    throw error
  })

  const settings = Object.fromEntries(
    [...readFileSync(join(local, 'env'), 'utf8').matchAll(/^export (\w+)='(.*)'$/gm)].map(([, name, value]) => [
      name,
      value,
    ]),
  )
  process.env.SHOP_FOLDER = local
  process.env.SHOP_URL = settings.FRONTEND_URL ?? `http://localhost:${settings.FRONTEND_PORT}`
  process.env.SHOP_MAILS = `http://127.0.0.1:${settings.MAIL_WEB_PORT}/api/email`
  return stop
}
