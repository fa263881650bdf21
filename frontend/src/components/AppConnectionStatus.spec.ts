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

const statusText = () => screen.getByRole('status').textContent
const seconds = (count: number) => vi.advanceTimersByTimeAsync(count * 1000)

/** Lets the next attempt succeed. */
async function reconnect() {
  while (latestSocket().readyState !== FakeSocket.CONNECTING) await seconds(0.1)
  latestSocket().greet()
  await nextTick()
}

function network(isOnline: boolean) {
  vi.spyOn(navigator, 'onLine', 'get').mockReturnValue(isOnline)
  window.dispatchEvent(new Event(isOnline ? 'online' : 'offline'))
}

test('a short connection loss shows nothing', async () => {
  latestSocket().disconnect()
  await reconnect()

  await seconds(10)

  expect(statusText()).toBe('')
})

test('a long connection loss is announced, then its end, then nothing', async () => {
  latestSocket().disconnect()
  await seconds(9)
  expect(statusText()).toMatch(/no live connection/)

  await reconnect()
  expect(statusText()).toMatch(/connection is back/)
  await seconds(4)
  expect(statusText()).toBe('')
})

test('an offline browser is announced as back only once the feed is open', async () => {
  network(false)
  latestSocket().disconnect()
  await seconds(2)
  expect(statusText()).toMatch(/You are offline/)

  network(true)
  await nextTick()
  expect(statusText()).toMatch(/no live connection/)

  await reconnect()
  expect(statusText()).toMatch(/connection is back/)
})
