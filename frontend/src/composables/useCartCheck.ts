import { useQueries } from '@tanstack/vue-query'
import { computed, watch } from 'vue'
import type { Product } from '@/api/client'
import { type CartLine, useCart } from '@/stores/cart'
import { isGone, productQuery } from './useProduct'
import { useLiveProducts } from './useLiveProducts'

/** Why a line can't be ordered as it is. price: the current one. */
export type CartIssue =
  { kind: 'gone' } | { kind: 'soldOut' } | { kind: 'short'; available: number } | { kind: 'price'; price: string }

function issuesOf(line: CartLine, product: Product | undefined, error: unknown): CartIssue[] {
  if (isGone(product, error)) return [{ kind: 'gone' }]
  if (!product) return []
  if (!product.stock_quantity) return [{ kind: 'soldOut' }]
  const issues: CartIssue[] = []
  if (product.stock_quantity < line.quantity) issues.push({ kind: 'short', available: product.stock_quantity })
  if (product.price !== line.price) issues.push({ kind: 'price', price: product.price })
  return issues
}

/** Checks the cart's lines against the current catalogue. */
export function useCartCheck() {
  const cart = useCart()
  const ids = computed(() => cart.lines.map((line) => line.product_id))
  useLiveProducts(ids)
  const reads = useQueries({
    queries: computed(() => ids.value.map((id) => ({ ...productQuery(id), refetchOnMount: 'always' as const }))),
  })

  const lines = computed(() =>
    cart.lines.map((line, i) => {
      const { data: product, error } = reads.value[i] ?? {}
      return { line, product, issues: issuesOf(line, product, error) }
    }),
  )
  watch(
    () => lines.value.flatMap(({ product }) => product ?? []),
    (products) => cart.updateDetails(products),
    { immediate: true },
  )

  return {
    lines,
    hasIssues: computed(() => lines.value.some(({ issues }) => issues.length)),
    /** Why some products could not be read. The shop checks them again when it gets the order. */
    error: computed(() => reads.value.find((read) => read.error && !isGone(read.data, read.error))?.error),
    recheck: () => Promise.all(reads.value.map((read) => read.refetch())),
  }
}
