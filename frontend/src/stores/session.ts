import { useQueryClient } from '@tanstack/vue-query'
import { defineStore } from 'pinia'
import { computed, ref, shallowRef } from 'vue'
import type { User } from '@/api/client'
import { Problem } from '@/api/problem'
import { currentToken, dropToken, inTurn, keepToken, onTokenChange, refreshToken, tokenUser } from '@/api/token'
import * as users from '@/api/users'
import { drop, keep, recall } from '@/utils/storage'

/** Says that there is a cookie to refresh by, which scripts can't see, and whose. Without it nobody is asked. */
const HINT = 'forage.logged-in'

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
  const customerId = ref(recall(HINT))
  const failure = shallowRef<Problem | null>(null)
  const ended = ref(false)
  const visit = ref(1)
  const isAdmin = computed(() => user.value?.role === 'admin')
  let asking: Promise<void> | null = null

  onTokenChange(() => {
    const id = tokenUser()
    if (!currentToken()) end()
    else if (id && id !== customerId.value) follow(id)
    if (!user.value) void begin()
  })

  /** Take up the session that the cookie keeps. Resolves when it is known who is there, or why that can't be told. */
  function begin(): Promise<void> {
    asking ??= ask().finally(() => (asking = null))
    return asking
  }

  async function ask() {
    try {
      // Again, when somebody else has come meanwhile.
      while (customerId.value && !user.value) {
        if (currentToken() || (await refreshToken(null))) await loadUser()
      }
      failure.value = null
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      failure.value = customerId.value ? error : null
    }
  }

  async function loadUser() {
    const whose = tokenUser()
    const me = await users.getMe()
    if (!currentToken() || tokenUser() !== whose) return
    user.value = me
    know(String(me.id))
    ended.value = false
  }

  function know(id: string) {
    customerId.value = id
    keep(HINT, id)
  }

  function follow(id: string) {
    if (customerId.value) forget()
    know(id)
  }

  function end() {
    if (!customerId.value) return
    ended.value = true
    failure.value = customerId.value = null
    drop(HINT)
    forget()
  }

  function forget() {
    // Of who was only remembered there is nothing on the screen.
    if (!user.value) return
    user.value = null
    queries.clear()
    visit.value++
  }

  /** Raises Problem. The login may have worked all the same: `begin` then goes on with it. */
  async function logIn(email: string, password: string) {
    await inTurn(async () => keepToken((await users.logIn(email, password)).access_token))
    await begin()
    if (failure.value) throw failure.value
  }

  /** With the cookie alone, as it is after a sign-in elsewhere. Whether there is a session. Raises Problem. */
  async function enter(): Promise<boolean> {
    const isOn = await refreshToken(currentToken())
    await begin()
    if (failure.value) throw failure.value
    return isOn
  }

  /** Raises Problem, and stays logged in, when the shop can't be told: the cookie would still be good. */
  async function logOut() {
    await inTurn(async () => {
      await users.logOut()
      leave()
    })
  }

  /** For who knows that the session is over. */
  function leave() {
    dropToken()
    ended.value = false
  }

  return { user, customerId, isAdmin, failure, ended, visit, begin, enter, logIn, logOut, leave }
})
