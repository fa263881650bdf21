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

/** The answer's body. Raises Problem for every refusal. */
export async function unwrap<Data>(answer: Promise<Answer<Data>>): Promise<Data> {
  return (await unwrapWithHeaders(answer)).data
}

/** The body and the headers it came with. */
export async function unwrapWithHeaders<Data>(
  answer: Promise<Answer<Data>>,
): Promise<{ data: Data; headers: Headers }> {
  const { data, error, response } = await answer.catch(throwNoResponse)
  if (!response.ok) throw new Problem(typeof error === 'object' && error ? error : {}, response)
  return { data: data as Data, headers: response.headers }
}

/** One that breaks off or stalls on the way, or is not the API's, is none. */
function throwNoResponse(error: unknown): never {
  const isLate = error instanceof DOMException && error.name === 'TimeoutError'
  throw isLate || error instanceof TypeError || error instanceof SyntaxError ? new Problem({}) : error
}
