import { screen } from '@testing-library/vue'
import userEvent from '@testing-library/user-event'
import { expect, test } from 'vitest'
import { useSession } from '@/stores/session'
import { renderInApp } from '@/testing/render'
import { jsonResponse, order, stubNetwork } from '@/testing/api'
import { useCancelOrder } from './useOrder'

const Cancel = {
  setup: () => ({ cancel: useCancelOrder(31) }),
  data: () => ({ isDone: false }),
  template: '<button @click="cancel().then(() => (isDone = true))">{{ isDone ? "Done" : "Cancel" }}</button>',
}

test('a cancellation answered after a logout does not reach the next user', async () => {
  let reply: (response: Response) => void = () => {}
  stubNetwork(() => new Promise((resolve) => (reply = resolve)))
  const { pinia, queryClient } = await renderInApp(Cancel)
  await userEvent.click(screen.getByRole('button', { name: 'Cancel' }))

  // Like a logout.
  useSession(pinia).visit++
  queryClient.clear()
  reply(jsonResponse(order({ status: 'cancelled' })))

  expect(await screen.findByRole('button', { name: 'Done' })).toBeVisible()
  expect(queryClient.getQueryData(['order', 31])).toBeUndefined()
})
