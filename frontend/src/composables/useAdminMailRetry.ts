import { useQueryClient } from '@tanstack/vue-query'
import { computed, onScopeDispose, ref } from 'vue'
import type { Notification } from '@/api/client'
import { retryNotification } from '@/api/notifications'
import { Problem } from '@/api/problem'
import { useErrorMessage } from './useErrorMessage'

export type Failure = { notification: Notification; reason: string }

/**
 * Sends failed or uncertain mails again, one at a time. A refused mail is recorded and the next is tried. Stops when
 * the shop doesn't answer or `stop` is called.
 */
export function useAdminMailRetry() {
  const queries = useQueryClient()
  const { errorMessage } = useErrorMessage()
  const queue = ref<Notification[]>([])
  const tried = ref(0)
  const stillPending = ref(0)
  const failures = ref<Failure[]>([])
  const current = ref<number | null>(null)
  const interruption = ref<unknown>(null)
  let shouldContinue = false

  const isRunning = computed(() => current.value !== null)
  const sent = computed(() => tried.value - stillPending.value - failures.value.length)

  async function retry(notifications: Notification[]) {
    if (isRunning.value || !notifications.length) return
    queue.value = notifications
    tried.value = 0
    stillPending.value = 0
    failures.value = []
    interruption.value = null
    shouldContinue = true
    for (const notification of notifications) {
      if (!shouldContinue) break
      current.value = notification.id
      await retryOne(notification)
    }
    current.value = null
    await Promise.all(['notifications', 'summary'].map((name) => queries.invalidateQueries({ queryKey: [name] })))
  }

  async function retryOne(notification: Notification) {
    try {
      const { status, error_message } = await retryNotification(notification.id)
      if (status === 'pending') stillPending.value++
      else if (status !== 'sent') failures.value.push({ notification, reason: error_message ?? '' })
    } catch (problem) {
      if (problem instanceof Problem && problem.isTransient) {
        interruption.value = problem
        stop()
        return
      }
      failures.value.push({ notification, reason: errorMessage(problem) })
    }
    tried.value++
  }

  function stop() {
    shouldContinue = false
  }
  function dismiss() {
    queue.value = []
  }
  onScopeDispose(stop)

  return { retry, stop, dismiss, queue, tried, sent, stillPending, failures, current, isRunning, interruption }
}
