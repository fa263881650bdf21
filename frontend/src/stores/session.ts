import { useQueryClient } from '@tanstack/vue-query'
import { defineStore } from 'pinia'
import { computed, ref, shallowRef } from 'vue'
import type { User } from '@/api/client'
import { Problem } from '@/api/problem'
import {
  clearToken,
  currentToken,
  onTokenChange,
  refreshToken,
  setToken,
  tokenUserId,
  withSessionLock,
} from '@/api/token'
import * as users from '@/api/users'
import { getStored, removeStored, setStored } from '@/utils/storage'

/** Says that there is a cookie to refresh by, which scripts can't see, and whose. Without it nobody is asked. */
const USER_ID_KEY = 'forage.logged-in'

/**
 * Who is logged in, the same in all tabs. `user` is null for a guest.
 *
 * customerId: the user's id as a string, on a reload known before the session is taken up.
 * failure: why it can't be told just now who is there.
 * ended: the session is over without anybody having logged out here, and the reader was not told yet.
 * visit: another number for each who was here in this tab; what is on the screen is the visit's.
 */
export const useSession = defineStore('session', () => {
  const queries = useQueryClient()
  const user = ref<User | null>(null)
  const knownUserId = ref(getStored(USER_ID_KEY))
  const failure = shallowRef<Problem | null>(null)
  const ended = ref(false)
  const visit = ref(1)
  const isAdmin = computed(() => user.value?.role === 'admin')
  let restoring: Promise<void> | null = null

  onTokenChange(() => {
    const id = tokenUserId()
    if (!currentToken()) handleEnd()
    else if (id && id !== knownUserId.value) switchTo(id)
    if (!user.value) void restore()
  })

  /** Take up the session that the cookie keeps. Resolves when it is known who is there, or why that can't be told. */
  function restore(): Promise<void> {
    restoring ??= doRestore().finally(() => (restoring = null))
    return restoring
  }

  async function doRestore() {
    try {
      // Again, when somebody else has come meanwhile.
      while (knownUserId.value && !user.value) {
        if (currentToken() || (await refreshToken(null))) await loadUser()
      }
      failure.value = null
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      failure.value = knownUserId.value ? error : null
    }
  }

  async function loadUser() {
    const requestedId = tokenUserId()
    const me = await users.getMe()
    if (!currentToken() || tokenUserId() !== requestedId) return
    user.value = me
    rememberUserId(String(me.id))
    ended.value = false
  }

  function rememberUserId(id: string) {
    knownUserId.value = id
    setStored(USER_ID_KEY, id)
  }

  function switchTo(id: string) {
    if (knownUserId.value) clearUser()
    rememberUserId(id)
  }

  function handleEnd() {
    if (!knownUserId.value) return
    ended.value = true
    failure.value = knownUserId.value = null
    removeStored(USER_ID_KEY)
    clearUser()
  }

  function clearUser() {
    // Of who was only remembered there is nothing on the screen.
    if (!user.value) return
    user.value = null
    queries.clear()
    visit.value++
  }

  /** Raises Problem. The login may have worked all the same: `begin` then goes on with it. */
  async function logIn(email: string, password: string) {
    await withSessionLock(async () => setToken((await users.logIn(email, password)).access_token))
    await restore()
    if (failure.value) throw failure.value
  }

  /** With the cookie alone, as it is after a sign-in elsewhere. Whether there is a session. Raises Problem. */
  async function restoreFromCookie(): Promise<boolean> {
    const hasSession = await refreshToken(currentToken())
    await restore()
    if (failure.value) throw failure.value
    return hasSession
  }

  /** Raises Problem, and stays logged in, when the shop can't be told: the cookie would still be good. */
  async function logOut() {
    await withSessionLock(async () => {
      await users.logOut()
      clear()
    })
  }

  /** For who knows that the session is over. */
  function clear() {
    clearToken()
    ended.value = false
  }

  return { user, knownUserId, isAdmin, failure, ended, visit, restore, restoreFromCookie, logIn, logOut, clear }
})
