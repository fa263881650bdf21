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

/** Stores whose refresh cookie the browser holds, which scripts can't see. Without it no refresh is tried. */
const USER_ID_KEY = 'forage.logged-in'

/**
 * The logged-in user, the same in all tabs. `user` is null for a guest.
 *
 * knownUserId: the user's id as a string. After a reload it is known before the session is restored.
 * failure: why the session could not be restored.
 * ended: the session has ended without a logout in this tab, and no toast has said so yet.
 * visit: changes whenever the user of this tab changes. Results of an earlier visit are discarded.
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

  /** Restores the session from the cookie. Resolves when the user, or the failure, is known. */
  function restore(): Promise<void> {
    restoring ??= doRestore().finally(() => (restoring = null))
    return restoring
  }

  async function doRestore() {
    try {
      // Repeats if the user has changed meanwhile.
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
    // Without a loaded user there is no data to clear.
    if (!user.value) return
    user.value = null
    queries.clear()
    visit.value++
  }

  /** Raises Problem. The login may still have worked: `restore` then completes it. */
  async function logIn(email: string, password: string) {
    await withSessionLock(async () => setToken((await users.logIn(email, password)).access_token))
    await restore()
    if (failure.value) throw failure.value
  }

  /** For a cookie set by a sign-in provider's redirect. Returns whether there is a session. Raises Problem. */
  async function restoreFromCookie(): Promise<boolean> {
    const hasSession = await refreshToken(currentToken())
    await restore()
    if (failure.value) throw failure.value
    return hasSession
  }

  /** Raises Problem and stays logged in if the shop can't be reached, since the cookie would stay valid. */
  async function logOut() {
    await withSessionLock(async () => {
      await users.logOut()
      clear()
    })
  }

  /** For a session that the shop has already ended. */
  function clear() {
    clearToken()
    ended.value = false
  }

  return { user, knownUserId, isAdmin, failure, ended, visit, restore, restoreFromCookie, logIn, logOut, clear }
})
