import { vi } from 'vitest'

const channels: BroadcastChannel[] = []

/** After it each import of a module gives another tab's. Returns what closes them all. */
export function stubChannels() {
  vi.stubGlobal(
    'BroadcastChannel',
    class extends BroadcastChannel {
      constructor(name: string) {
        super(name)
        channels.push(this)
      }
    },
  )
  return () => {
    channels.splice(0).forEach((channel) => channel.close())
    vi.unstubAllGlobals()
  }
}

/** Web Locks, which jsdom lacks: one after the other, in the order they were asked for. */
export function stubLocks() {
  let last: Promise<unknown> = Promise.resolve()
  const request = (_: string, work: () => Promise<unknown>) => (last = last.then(work, work))
  vi.stubGlobal('navigator', Object.create(navigator, { locks: { value: { request } } }))
}
