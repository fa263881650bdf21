import { screen, waitFor, within } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import type { Notification } from '@/api/client'
import { loadAdminMessages } from '@/i18n'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork } from '@/testing/api'
import NotificationsPage from './NotificationsPage.vue'

beforeAll(loadAdminMessages)
afterEach(() => void vi.useRealTimers())

const mail = (id: number, fields: Partial<Notification> = {}): Notification => ({
  id,
  type: 'email',
  event_type: 'order_confirmation',
  recipient_email: `someone${id}@forage.example`,
  subject: `Mail ${id}`,
  message: '',
  order_id: 31,
  user_id: 7,
  status: 'failed',
  error_message: 'No such mailbox',
  attempts: 5,
  read_at: null,
  created_at: '2026-01-01T08:00:00Z',
  ...fields,
})

let mails: Notification[]
let requests: Request[]
let atOnce: number
let mostAtOnce: number
let retried: (id: number) => Response
beforeEach(() => {
  mails = [mail(3), mail(2), mail(1)]
  atOnce = mostAtOnce = 0
  retried = (id) => jsonResponse(mail(id, { status: 'sent' }))
  requests = stubNetwork(async (request, path) => {
    if (request.method === 'GET') return jsonResponse({ notifications: mails, total: mails.length })
    mostAtOnce = Math.max(mostAtOnce, ++atOnce)
    await Promise.resolve()
    atOnce--
    return retried(Number(path.split('/').at(-1)))
  })
})

const retries = () => requests.filter(({ method }) => method === 'POST').map(({ url }) => Number(url.split('/').at(-1)))
const report = async () => within(await screen.findByRole('region', { name: 'Sending again' }))

test('failed mails show by default, each with its reason', async () => {
  await renderInApp(NotificationsPage, { at: '/admin/notifications' })

  expect(await screen.findAllByText('No such mailbox')).toHaveLength(3)
  expect(new URL(requests[0]!.url).searchParams.get('status')).toBe('failed')
})

test('the filter shows all mails', async () => {
  const { router } = await renderInApp(NotificationsPage, { at: '/admin/notifications' })

  await userEvent.selectOptions(await screen.findByLabelText('Status'), 'all')

  await waitFor(() => expect(router.currentRoute.value.query).toEqual({ status: 'all' }))
  await waitFor(() => expect(new URL(requests.at(-1)!.url).searchParams.has('status')).toBe(false))
})

test('only the selected mails are sent again', async () => {
  await renderInApp(NotificationsPage, { at: '/admin/notifications' })
  await userEvent.click(await screen.findByRole('checkbox', { name: 'Select: Mail 3, to someone3@forage.example' }))
  await userEvent.click(screen.getByRole('checkbox', { name: 'Select: Mail 1, to someone1@forage.example' }))

  await userEvent.click(screen.getByRole('button', { name: 'Retry 2 selected' }))

  expect(await (await report()).findByText('2 were sent.')).toBeVisible()
  expect(retries()).toEqual([3, 1])
})

test.each([
  ['Retry all 3 failed on this page', ''],
  ['Retry 1 selected', 'Select: Mail 3, to someone3@forage.example'],
  ['Retry: Mail 3, to someone3@forage.example', ''],
])('%s keeps the focus while busy and passes it to the heading when it disappears', async (name, box) => {
  let reply: (response: Response) => void = () => {}
  await renderInApp(NotificationsPage, { at: '/admin/notifications' })
  await screen.findByText('Mail 3')
  if (box) await userEvent.click(screen.getByRole('checkbox', { name: box }))
  stubNetwork((request) => {
    if (request.method === 'GET') return jsonResponse({ notifications: [], total: 0 })
    return new Promise((resolve) => (reply = resolve))
  })
  const button = screen.getByRole('button', { name })

  await userEvent.click(button)
  expect(button).toHaveFocus()
  expect(button).toBeEnabled()
  stubNetwork(() => jsonResponse({ notifications: [], total: 0 }))
  reply(jsonResponse(mail(3, { status: 'sent' })))

  await waitFor(() => expect(screen.getByRole('heading', { level: 1 })).toHaveFocus())
})

test('mails are retried one at a time, and each new failure shows its reason', async () => {
  retried = (id) =>
    id === 3
      ? jsonResponse(mail(3, { error_message: 'Still no mailbox' }))
      : id === 2
        ? problemResponse('mail-not-needed', 409)
        : jsonResponse(mail(id, { status: 'sent' }))
  await renderInApp(NotificationsPage, { at: '/admin/notifications' })

  await userEvent.click(await screen.findByRole('button', { name: 'Retry all 3 failed on this page' }))

  expect(await (await report()).findByText('1 was sent. 2 failed again.')).toBeVisible()
  const [first, second] = (await report()).getAllByRole('listitem')
  expect(first).toHaveTextContent('someone3@forage.example · Mail 3 Still no mailbox')
  expect(second).toHaveTextContent('Mail 2 This mail is not needed any more.')
  expect(mostAtOnce).toBe(1)
})

test('a mail still being sent counts as neither sent nor failed', async () => {
  retried = (id) => jsonResponse(mail(id, { status: id === 3 ? 'pending' : 'sent' }))
  await renderInApp(NotificationsPage, { at: '/admin/notifications' })

  await userEvent.click(await screen.findByRole('button', { name: 'Retry all 3 failed on this page' }))

  expect(await (await report()).findByText('2 were sent. 1 is still being sent.')).toBeVisible()
})

test('an uncertain mail can be retried alone, but not with all failed ones', async () => {
  mails = [mail(3), mail(2, { status: 'uncertain' })]
  await renderInApp(NotificationsPage, { at: '/admin/notifications?status=all' })
  expect(await screen.findByRole('button', { name: 'Retry the failed one on this page' })).toBeVisible()

  await userEvent.click(screen.getByRole('button', { name: 'Retry: Mail 2, to someone2@forage.example' }))

  expect(await (await report()).findByText('1 was sent.')).toBeVisible()
  expect(retries()).toEqual([2])
})

test('when the service is unreachable, the rest is not tried', async () => {
  retried = (id) => (id === 3 ? jsonResponse(mail(3, { status: 'sent' })) : problemResponse('service-unavailable', 503))
  await renderInApp(NotificationsPage, { at: '/admin/notifications' })

  await userEvent.click(await screen.findByRole('button', { name: 'Retry all 3 failed on this page' }))

  expect(await (await report()).findByText('1 was sent. 2 were not tried.')).toBeVisible()
  expect((await report()).getByRole('alert')).toHaveTextContent('A part of the shop is down.')
  expect(retries()).toEqual([3, 2])
})

test('the list is refetched periodically', async () => {
  vi.useFakeTimers({ shouldAdvanceTime: true })
  await renderInApp(NotificationsPage)
  await screen.findByText('Mail 3')

  mails = [mail(4), ...mails]
  await vi.advanceTimersByTimeAsync(15_000)

  expect(await screen.findByText('Mail 4')).toBeVisible()
})
