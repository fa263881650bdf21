import { api, unwrap, unwrapWithHeaders } from './client'
import type { components } from './schema'

type Schemas = components['schemas']
export type Summary = Schemas['SummaryView']
export type ParkedMessage = Schemas['ParkedMessageView']

export const getSummary = (days: number, signal?: AbortSignal) =>
  unwrap(api.GET('/admin/summary', { params: { query: { days } }, signal }))

export const listParked = (query: { limit: number; offset: number }, signal?: AbortSignal) =>
  unwrap(api.GET('/admin/parked', { params: { query }, signal }))
export const replayParked = ({ service, id }: ParkedMessage) =>
  unwrap(api.POST('/admin/parked/{service}/{message_id}/replay', { params: { path: { service, message_id: id } } }))
export const discardParked = ({ service, id }: ParkedMessage) =>
  unwrap(api.DELETE('/admin/parked/{service}/{message_id}', { params: { path: { service, message_id: id } } }))
export type ParkedAction = 'replay' | 'discard'
/** Of some hundred messages; `left` of the answer goes with the next call, until it is 0. */
export const runParkedAction = (action: ParkedAction, body: Schemas['ParkedSelection']) =>
  unwrap(api.POST(`/admin/parked/${action}`, { body }))

type Answer = { data: Schemas['ProductView']; headers: Headers }
const withEtag = ({ data, headers }: Answer) => ({ product: data, etag: headers.get('ETag') ?? '' })

/** Saved on top of the version that `etag` names, or refused as stale. The answer names the next. */
export async function saveProduct(id: number, changes: Partial<Schemas['ProductChanges']>, etag: string) {
  const params = { path: { product_id: id }, header: { 'If-Match': etag } }
  // Those with a default count as required in the types; what is absent stays.
  const body = changes as Schemas['ProductChanges']
  return withEtag(await unwrapWithHeaders(api.PATCH('/products/{product_id}', { params, body })))
}

export const saveStock = async (id: number, body: Schemas['StockChange']) =>
  withEtag(
    await unwrapWithHeaders(api.PATCH('/products/{product_id}/stock', { params: { path: { product_id: id } }, body })),
  )
