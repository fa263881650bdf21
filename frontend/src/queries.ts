import { QueryClient } from '@tanstack/vue-query'
import { Problem } from './api/problem'

const MAX_TRIES = 3

/**
 * The query cache. A key begins with the name of its resource: ['products', query], ['product', id],
 * ['orders', query], ['order', id], ['notifications', query], …
 */
export const queries = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 10_000,
      // Only transient errors are retried.
      retry: (failures, error) => error instanceof Problem && error.isTransient && failures < MAX_TRIES,
      retryDelay: (failures, error) =>
        1000 * (error instanceof Problem && error.retryAfterSeconds ? error.retryAfterSeconds : 2 ** failures),
    },
    // The caller of a mutation retries it.
    mutations: { retry: false, networkMode: 'always' },
  },
})
