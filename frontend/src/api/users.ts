import { api, unwrap } from './client'

export const logIn = (email: string, password: string) =>
  unwrap(api.POST('/users/login', { body: { email, password } }))
export const logOut = () => unwrap(api.POST('/auth/logout'))
export const register = (body: { email: string; username: string; password: string }) =>
  unwrap(api.POST('/users/register', { body }))
export const listProviders = () => unwrap(api.GET('/auth/providers'))
/** The browser goes there to sign in with Google and comes back to /auth/callback. */
export const GOOGLE_SIGN_IN = '/api/auth/google'

export const getMe = () => unwrap(api.GET('/users/me'))
export const rename = (username: string) => unwrap(api.PATCH('/users/me', { body: { username } }))
export const changePassword = (body: { old_password: string; password: string }) =>
  unwrap(api.POST('/users/me/password', { body }))
export const askForVerification = () => unwrap(api.POST('/users/me/verification'))
export const verifyEmail = (token: string) => unwrap(api.POST('/users/verify-email', { body: { token } }))
export const askForPasswordReset = (email: string) => unwrap(api.POST('/users/password-reset', { body: { email } }))
export const resetPassword = (token: string, password: string) =>
  unwrap(api.POST('/users/password-reset/confirm', { body: { token, password } }))

export const listSessions = () => unwrap(api.GET('/users/me/sessions'))
export const endSession = (id: number) =>
  unwrap(api.DELETE('/users/me/sessions/{session_id}', { params: { path: { session_id: id } } }))

export const listUsers = (
  query: { q?: string; role?: 'customer' | 'admin'; limit?: number; offset?: number },
  signal?: AbortSignal,
) => unwrap(api.GET('/users', { params: { query }, signal }))
export const changeUser = (id: number, body: { role?: 'customer' | 'admin'; is_active?: boolean }) =>
  unwrap(api.PATCH('/users/{user_id}', { params: { path: { user_id: id } }, body }))
