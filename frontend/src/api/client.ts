import createClient from 'openapi-fetch'
import { Problem } from './problem'
import type { components, paths } from './schema'
import { fetchWithToken } from './token'

export const api = createClient<paths>({ baseUrl: '/api', fetch: fetchWithToken })

type Schemas = components['schemas']
export type User = Schemas['UserView']
export type Session = Schemas['SessionView']
export type Product = Schemas['ProductView']
export type ProductPage = Schemas['ProductPageView']
export type Order = Schemas['OrderView']
export type OrderStatus = Order['status']
export type Notification = Schemas['NotificationView']
export type NotificationPage = Schemas['NotificationPageView']

type Answer<Data> = { data?: Data; error?: unknown; response: Response }

/** The response's body. Raises Problem for an error status. */
export async function unwrap<Data>(answer: Promise<Answer<Data>>): Promise<Data> {
  return (await unwrapWithHeaders(answer)).data
}

/** The same, with the response's headers. */
export async function unwrapWithHeaders<Data>(
  answer: Promise<Answer<Data>>,
): Promise<{ data: Data; headers: Headers }> {
  const { data, error, response } = await answer.catch(throwNoResponse)
  if (!response.ok) throw new Problem(typeof error === 'object' && error ? error : {}, response)
  return { data: data as Data, headers: response.headers }
}

/** A response that breaks off, stalls or is not JSON counts as no response. */
function throwNoResponse(error: unknown): never {
  const isLate = error instanceof DOMException && error.name === 'TimeoutError'
  throw isLate || error instanceof TypeError || error instanceof SyntaxError ? new Problem({}) : error
}
