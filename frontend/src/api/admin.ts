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
/** Handles a few hundred messages. Call it again with the answer's `left`, until that is 0. */
export const runParkedAction = (action: ParkedAction, body: Schemas['ParkedSelection']) =>
  unwrap(api.POST(`/admin/parked/${action}`, { body }))

type Answer = { data: Schemas['ProductView']; headers: Headers }
const withEtag = ({ data, headers }: Answer) => ({ product: data, etag: headers.get('ETag') ?? '' })

/** Refused as stale unless `etag` names the current version. Returns the new etag. */
export async function saveProduct(id: number, changes: Partial<Schemas['ProductChanges']>, etag: string) {
  const params = { path: { product_id: id }, header: { 'If-Match': etag } }
  // The types require fields that have a default. An absent field is left unchanged.
  const body = changes as Schemas['ProductChanges']
  return withEtag(await unwrapWithHeaders(api.PATCH('/products/{product_id}', { params, body })))
}

export const saveStock = async (id: number, body: Schemas['StockChange']) =>
  withEtag(
    await unwrapWithHeaders(api.PATCH('/products/{product_id}/stock', { params: { path: { product_id: id } }, body })),
  )
