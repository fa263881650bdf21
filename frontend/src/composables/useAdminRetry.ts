import { useQueryClient } from '@tanstack/vue-query'
import { computed, onScopeDispose, ref } from 'vue'
import type { Notification } from '@/api/client'
import { retryNotification } from '@/api/notifications'
import { Problem } from '@/api/problem'
import { useProblem } from './useProblem'

export type Failure = { notification: Notification; reason: string }

/**
 * Sends failed or uncertain mails again, one after the other. A refusal of one is noted, and the next is tried; when the shop
 * itself doesn't answer, or `stop` is called, the rest is left alone.
 */
export function useAdminRetry() {
  const queries = useQueryClient()
  const { sentence } = useProblem()
  const todo = ref<Notification[]>([])
  const tried = ref(0)
  const waiting = ref(0)
  const failures = ref<Failure[]>([])
  const current = ref<number | null>(null)
  const interruption = ref<unknown>(null)
  let goesOn = false

  const isRunning = computed(() => current.value !== null)
  const sent = computed(() => tried.value - waiting.value - failures.value.length)

  async function retry(notifications: Notification[]) {
    if (isRunning.value || !notifications.length) return
    todo.value = notifications
    tried.value = 0
    waiting.value = 0
    failures.value = []
    interruption.value = null
    goesOn = true
    for (const notification of notifications) {
      if (!goesOn) break
      current.value = notification.id
      await retryOne(notification)
    }
    current.value = null
    await Promise.all(['notifications', 'summary'].map((name) => queries.invalidateQueries({ queryKey: [name] })))
  }

  async function retryOne(notification: Notification) {
    try {
      const { status, error_message } = await retryNotification(notification.id)
      if (status === 'pending') waiting.value++
      else if (status !== 'sent') failures.value.push({ notification, reason: error_message ?? '' })
    } catch (problem) {
      if (problem instanceof Problem && problem.passes) {
        interruption.value = problem
        stop()
        return
      }
      failures.value.push({ notification, reason: sentence(problem) })
    }
    tried.value++
  }

  function stop() {
    goesOn = false
  }
  function forget() {
    todo.value = []
  }
  onScopeDispose(stop)

  return { retry, stop, forget, todo, tried, sent, waiting, failures, current, isRunning, interruption }
}
