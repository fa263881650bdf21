import { useQueryClient } from '@tanstack/vue-query'
import { computed, onScopeDispose, ref } from 'vue'
import { type ParkedAction, type ParkedMessage, runParkedAction } from '@/api/admin'

export type ParkedSelection = { services: ParkedMessage['service'][]; queue: string | null; reason: string | null }

/**
 * Replays or discards all parked messages of a selection, a few hundred per call, until none is left or `stop` is
 * called. A service that refuses is recorded, and the next one is called.
 */
export function useParkedBulkActions() {
  const queries = useQueryClient()
  const action = ref<ParkedAction | null>(null)
  const isRunning = ref(false)
  const done = ref(0)
  const kept = ref(0)
  const left = ref(0)
  const interruption = ref<unknown>(null)
  let shouldContinue = false

  const processed = computed(() => done.value + kept.value)

  async function run(chosen: ParkedAction, { services, ...selection }: ParkedSelection) {
    if (isRunning.value) return
    action.value = chosen
    isRunning.value = shouldContinue = true
    done.value = kept.value = left.value = 0
    interruption.value = null
    for (const service of services) {
      try {
        await runForService(chosen, service, selection)
      } catch (problem) {
        interruption.value = problem
      }
    }
    isRunning.value = false
    await Promise.all(['parked', 'summary'].map((name) => queries.invalidateQueries({ queryKey: [name] })))
  }

  async function runForService(
    chosen: ParkedAction,
    service: ParkedMessage['service'],
    selection: Omit<ParkedSelection, 'services'>,
  ) {
    let remaining: number | null = null
    while (shouldContinue && remaining !== 0) {
      const answer = await runParkedAction(chosen, { ...selection, service, left: remaining })
      done.value += answer.done
      kept.value += answer.kept
      remaining = left.value = answer.left
    }
  }

  function stop() {
    shouldContinue = false
  }
  function dismiss() {
    action.value = null
  }
  onScopeDispose(stop)

  return { run, stop, dismiss, action, isRunning, done, kept, left, processed, interruption }
}
