import { useQueryClient } from '@tanstack/vue-query'
import { computed, onScopeDispose, ref } from 'vue'
import { type ParkedAction, type ParkedMessage, settleAllParked } from '@/api/admin'

export type ParkedSelection = { services: ParkedMessage['service'][]; queue: string | null; reason: string | null }

/**
 * Replays or discards all parked messages of a selection, some hundred with each call, until none is left or `stop`
 * is called. A service that refuses is noted, and the next is asked.
 */
export function useParkedAll() {
  const queries = useQueryClient()
  const action = ref<ParkedAction | null>(null)
  const isRunning = ref(false)
  const done = ref(0)
  const kept = ref(0)
  const left = ref(0)
  const interruption = ref<unknown>(null)
  let goesOn = false

  const lookedAt = computed(() => done.value + kept.value)

  async function settle(what: ParkedAction, { services, ...selection }: ParkedSelection) {
    if (isRunning.value) return
    action.value = what
    isRunning.value = goesOn = true
    done.value = kept.value = left.value = 0
    interruption.value = null
    for (const service of services) {
      try {
        await settleOne(what, service, selection)
      } catch (problem) {
        interruption.value = problem
      }
    }
    isRunning.value = false
    await Promise.all(['parked', 'summary'].map((name) => queries.invalidateQueries({ queryKey: [name] })))
  }

  async function settleOne(
    what: ParkedAction,
    service: ParkedMessage['service'],
    selection: Omit<ParkedSelection, 'services'>,
  ) {
    let toGo: number | null = null
    while (goesOn && toGo !== 0) {
      const answer = await settleAllParked(what, { ...selection, service, left: toGo })
      done.value += answer.done
      kept.value += answer.kept
      toGo = left.value = answer.left
    }
  }

  function stop() {
    goesOn = false
  }
  function forget() {
    action.value = null
  }
  onScopeDispose(stop)

  return { settle, stop, forget, action, isRunning, done, kept, left, lookedAt, interruption }
}
