import { vi } from 'vitest'

const channels: BroadcastChannel[] = []

/** Records every BroadcastChannel. Returns a function that closes them all. */
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

/** Web Locks, which jsdom lacks: granted one at a time, in order. */
export function stubLocks() {
  let last: Promise<unknown> = Promise.resolve()
  const request = (_: string, work: () => Promise<unknown>) => (last = last.then(work, work))
  vi.stubGlobal('navigator', Object.create(navigator, { locks: { value: { request } } }))
}
