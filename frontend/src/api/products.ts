import { api, unwrap, unwrapWithHeaders } from './client'
import type { components } from './schema'

type Schemas = components['schemas']
export type ProductSort = 'name' | '-name' | 'price' | '-price' | 'created_at' | '-created_at'
export type ProductQuery = {
  limit?: number
  offset?: number
  category?: string
  name?: string
  is_active?: boolean
  sort_by?: ProductSort
}

export const listProducts = (query: ProductQuery, signal?: AbortSignal) =>
  unwrap(api.GET('/products', { params: { query }, signal }))

export const listCategories = () => unwrap(api.GET('/products/categories'))

export const getProduct = (id: number) =>
  unwrap(api.GET('/products/{product_id}', { params: { path: { product_id: id } } }))

/** The product, and its etag for If-Match. */
export async function getProductToEdit(id: number) {
  const path = { product_id: id }
  const { data, headers } = await unwrapWithHeaders(api.GET('/products/{product_id}', { params: { path } }))
  return { product: data, etag: headers.get('ETag') ?? '' }
}

export const createProduct = (body: Schemas['ProductRequest']) => unwrap(api.POST('/products', { body }))
