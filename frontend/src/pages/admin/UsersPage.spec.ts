import { screen, waitFor, within } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { beforeAll, beforeEach, expect, test } from 'vitest'
import { loadAdminMessages } from '@/i18n'
import { useSession } from '@/stores/session'
import { renderInApp } from '@/testing/render'
import { jsonResponse, problemResponse, stubNetwork, user } from '@/testing/api'
import UsersPage from './UsersPage.vue'

beforeAll(loadAdminMessages)

const me = user({ id: 1, username: 'admin', email: 'admin@forage.example', role: 'admin' })
let users = [me]
let requests: Request[]
let change: (body: object) => Response
beforeEach(() => {
  users = [me, user()]
  change = (body) => jsonResponse((users[1] = user(body)))
  requests = stubNetwork(async (request) => {
    if (request.method === 'PATCH') return change(await request.json())
    return jsonResponse({ items: users, total: users.length, limit: 25, offset: 0 })
  })
})

async function show() {
  const shown = await renderInApp(UsersPage, { at: '/admin/users' })
  const session = useSession(shown.pinia)
  session.user = me
  session.knownUserId = '1'
  await screen.findByText('ada')
  return shown
}
const changes = () => requests.filter(({ method }) => method === 'PATCH')

test('a role is changed after confirmation', async () => {
  await show()

  await userEvent.click(screen.getByRole('button', { name: 'Make ada an admin' }))
  const question = within(await screen.findByRole('dialog', { name: 'Make ada an admin' }))
  expect(changes()).toEqual([])
  await userEvent.click(question.getByRole('button', { name: 'Make admin' }))

  expect(await screen.findByRole('button', { name: 'Make ada a customer' })).toBeVisible()
  expect(new URL(changes()[0]!.url).pathname).toBe('/api/users/7')
})

test('an account is disabled after confirmation', async () => {
  await show()

  await userEvent.click(screen.getByRole('button', { name: 'Disable ada' }))
  await userEvent.click(within(await screen.findByRole('dialog')).getByRole('button', { name: 'Disable' }))

  expect(await screen.findByRole('button', { name: 'Enable ada' })).toBeVisible()
})

test('the reason why the last admin must stay shows in the dialog', async () => {
  change = () => problemResponse('last-admin', 409)
  await show()

  await userEvent.click(screen.getByRole('button', { name: 'Make admin a customer' }))
  const question = within(await screen.findByRole('dialog'))
  await userEvent.click(question.getByRole('button', { name: 'Make customer' }))

  expect(await question.findByText('This is the last admin. Make another user an admin first.')).toBeVisible()
})

test("changing one's own account shows a warning and logs out", async () => {
  change = () => jsonResponse({ ...me, role: 'customer' })
  const { pinia, router } = await show()

  await userEvent.click(screen.getByRole('button', { name: 'Make admin a customer' }))
  const question = within(await screen.findByRole('dialog'))
  expect(question.getByText(/This is your own account/)).toBeVisible()
  await userEvent.click(question.getByRole('button', { name: 'Make customer' }))

  await waitFor(() => expect(router.currentRoute.value.path).toBe('/login'))
  expect(useSession(pinia).user).toBeNull()
})

test("another user's account shows no such warning", async () => {
  await show()

  await userEvent.click(screen.getByRole('button', { name: 'Disable ada' }))

  await screen.findByRole('dialog')
  expect(screen.queryByText(/This is your own account/)).not.toBeInTheDocument()
})
