import { screen } from '@testing-library/vue'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { nextTick } from 'vue'
import { renderInApp } from '@/testing/render'
import { jsonResponse, stubNetwork } from '@/testing/api'
import { FakeSocket, latestSocket, stubSockets } from '@/testing/socket'
import { useLiveFeed } from '@/stores/liveFeed'
import AppConnectionStatus from './AppConnectionStatus.vue'

let pinia: Pinia

beforeEach(async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] })
  stubSockets()
  stubNetwork(() => jsonResponse({}))
  ;({ pinia } = await renderInApp(AppConnectionStatus))
  useLiveFeed(pinia).open()
  latestSocket().greet()
  await nextTick()
})
afterEach(() => {
  vi.useRealTimers()
  disposePinia(pinia)
})

const said = () => screen.getByRole('status').textContent
const seconds = (count: number) => vi.advanceTimersByTimeAsync(count * 1000)

/** The next attempt succeeds. */
async function comeBack() {
  while (latestSocket().readyState !== FakeSocket.CONNECTING) await seconds(0.1)
  latestSocket().greet()
  await nextTick()
}

function network(isOnline: boolean) {
  vi.spyOn(navigator, 'onLine', 'get').mockReturnValue(isOnline)
  window.dispatchEvent(new Event(isOnline ? 'online' : 'offline'))
}

test('a loss that ends soon is not worth a word', async () => {
  latestSocket().disconnect()
  await comeBack()

  await seconds(10)

  expect(said()).toBe('')
})

test('a shop that stays away is said, and said to be back, and then nothing', async () => {
  latestSocket().disconnect()
  await seconds(9)
  expect(said()).toMatch(/no live connection/)

  await comeBack()
  expect(said()).toMatch(/connection is back/)
  await seconds(4)
  expect(said()).toBe('')
})

test('a browser that is offline says so, and is not back before the shop is heard', async () => {
  network(false)
  latestSocket().disconnect()
  await seconds(2)
  expect(said()).toMatch(/You are offline/)

  network(true)
  await nextTick()
  expect(said()).toMatch(/no live connection/)

  await comeBack()
  expect(said()).toMatch(/connection is back/)
})
