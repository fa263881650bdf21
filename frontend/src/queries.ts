import { QueryClient } from '@tanstack/vue-query'
import { Problem } from './api/problem'

const MAX_TRIES = 3

/**
 * What was read, and for how long it is good. Keys begin with what they are of: ['products', query], ['product', id],
 * ['orders', query], ['order', id], ['notifications', query], …
 */
export const queries = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 10_000,
      // A refusal stays one; what passes by itself is tried again.
      retry: (failures, error) => error instanceof Problem && error.isTransient && failures < MAX_TRIES,
      retryDelay: (failures, error) =>
        1000 * (error instanceof Problem && error.retryAfterSeconds ? error.retryAfterSeconds : 2 ** failures),
    },
    // What changes something is tried again by who asked for it.
    mutations: { retry: false, networkMode: 'always' },
  },
})
