import { useEventListener } from '@vueuse/core'
import { defineStore } from 'pinia'
import { computed, ref, watch } from 'vue'
import type { Order, Product } from '@/api/client'
import { i18n } from '@/i18n'
import { getStored, removeStored, setStored } from '@/utils/storage'
import { useSession } from './session'
import { useToasts } from './toasts'

/** An order's limits, from contracts/types.py. */
export const MAX_LINES = 100
export const MAX_QUANTITY = 10_000
const MAX_ID = 2 ** 31 - 1

/** name, image_url: as last seen. price: accepted by the customer, sent as unit_price. */
export type CartLine = { product_id: number; quantity: number; name: string; price: string; image_url: string | null }

/** key: the Idempotency-Key of an order of exactly these lines. */
export type CartOrder = { key: string; lines: CartLine[] }

/** sent: an order that was sent and whose outcome is unknown. Later changes of the cart don't touch it. */
type Cart = CartOrder & { version: 1; sent: CartOrder | null }

const PREFIX = 'forage.cart.'
const GUEST = 'guest'

/** Not crypto.randomUUID, which needs https. */
const newKey = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('')

const emptyCart = (): Cart => ({ version: 1, key: newKey(), lines: [], sent: null })

function isLine(line: CartLine): boolean {
  return (
    Number.isInteger(line?.product_id) &&
    line.product_id >= 1 &&
    line.product_id <= MAX_ID &&
    Number.isInteger(line.quantity) &&
    line.quantity >= 1 &&
    line.quantity <= MAX_QUANTITY &&
    typeof line.name === 'string' &&
    /^\d{1,10}\.\d\d$/.test(line.price) &&
    (line.image_url === null || typeof line.image_url === 'string')
  )
}

function isOrder({ key, lines }: CartOrder): boolean {
  return (
    typeof key === 'string' &&
    // Other characters don't fit in a header.
    /^[!-~]{1,255}$/.test(key) &&
    Array.isArray(lines) &&
    lines.length <= MAX_LINES &&
    lines.every(isLine) &&
    new Set(lines.map((line) => line.product_id)).size === lines.length
  )
}

const isCart = (cart: Cart | null): cart is Cart =>
  cart?.version === 1 && isOrder(cart) && (cart.sent === null || (typeof cart.sent === 'object' && isOrder(cart.sent)))

/** A stored cart that is invalid, for example of an older release, counts as empty. */
function parse(saved: string | null): Cart {
  try {
    const cart = JSON.parse(saved ?? 'null')
    return isCart(cart) ? cart : emptyCart()
  } catch (error) {
    if (error instanceof SyntaxError) return emptyCart()
    throw error
  }
}

const read = (owner: string) => parse(getStored(PREFIX + owner))

/** Adds a line, or raises the quantity of an existing one. Stays within an order's limits. */
function withLine(lines: CartLine[], added: CartLine): CartLine[] {
  const known = lines.find((line) => line.product_id === added.product_id)
  if (!known) return lines.length < MAX_LINES ? [...lines, added] : lines
  const quantity = Math.min(MAX_QUANTITY, known.quantity + added.quantity)
  return lines.map((line) => (line === known ? { ...added, quantity } : line))
}

/**
 * The cart of the user or the guest, in localStorage: one for each user, shared by all tabs.
 *
 * Its key identifies one order. Every change of the lines makes a new key. The key is made then, not on placing the
 * order, so that two tabs that place it at once send the same. An order that was sent is kept beside the lines until
 * its outcome is known. Only then can another be sent.
 */
export const useCart = defineStore('cart', () => {
  const session = useSession()
  const owner = computed(() => session.knownUserId ?? GUEST)
  const cart = ref(read(owner.value))
  const lines = computed(() => cart.value.lines)
  const key = computed(() => cart.value.key)
  const sent = computed(() => cart.value.sent)
  const count = computed(() => lines.value.reduce((sum, line) => sum + line.quantity, 0))

  watch(owner, () => (cart.value = read(owner.value)), { flush: 'sync' })
  watch(
    () => session.user?.id,
    (id) => id && mergeGuest(String(id)),
    { flush: 'sync', immediate: true },
  )
  useEventListener(window, 'storage', (event) => {
    if (event.key === null || event.key === PREFIX + owner.value) cart.value = read(owner.value)
  })

  function write(cartOwner: string, changed: Cart) {
    setStored(PREFIX + cartOwner, JSON.stringify(changed))
    if (cartOwner === owner.value) cart.value = changed
  }

  /** Edits the stored lines, since another tab may have changed them. */
  function change(edit: (lines: CartLine[]) => CartLine[]) {
    const saved = read(owner.value)
    write(owner.value, { ...saved, lines: edit(saved.lines), key: newKey() })
  }

  /** Runs in every tab on a login. Taking over the guest's key shows the other tabs that it is done. */
  function mergeGuest(id: string) {
    const guest = read(GUEST)
    const own = read(id)
    if (guest.lines.length && guest.key !== own.key) {
      const merged = guest.lines.reduce(withLine, own.lines)
      write(id, { ...own, lines: merged, key: guest.key })
      const leftOut = guest.lines.filter((line) => !merged.some(({ product_id }) => product_id === line.product_id))
      if (leftOut.length) {
        const names = leftOut.map((line) => line.name).join(' · ')
        useToasts().show({ kind: 'error', title: i18n.global.t('shop.cart.full', { n: MAX_LINES }), text: names })
      }
    }
    removeStored(PREFIX + GUEST)
  }

  const quantityOf = (productId: number) => lines.value.find((line) => line.product_id === productId)?.quantity ?? 0

  const maxAddable = (product: Product) =>
    product.is_active ? Math.max(0, Math.min(product.stock_quantity, MAX_QUANTITY) - quantityOf(product.id)) : 0

  /** Adds as many as possible and returns how many. */
  function add(product: Product, quantity: number): number {
    const { id: product_id, name, price, image_url } = product
    const before = quantityOf(product_id)
    const fitting = Math.min(quantity, maxAddable(product))
    if (fitting) change((lines) => withLine(lines, { product_id, name, price, image_url, quantity: fitting }))
    return quantityOf(product_id) - before
  }

  function setQuantity(productId: number, quantity: number) {
    change((lines) => lines.map((line) => (line.product_id === productId ? { ...line, quantity } : line)))
  }

  function acceptPrice(productId: number, price: string) {
    change((lines) => lines.map((line) => (line.product_id === productId ? { ...line, price } : line)))
  }

  /** Returns a function that restores the line in its place. */
  function remove(productId: number): () => void {
    const at = lines.value.findIndex((line) => line.product_id === productId)
    const removed = lines.value[at]
    change((lines) => lines.filter((line) => line.product_id !== productId))
    return () => {
      if (removed && !quantityOf(productId))
        change((lines) => [...lines.slice(0, at), removed, ...lines.slice(at)].slice(0, MAX_LINES))
    }
  }

  /** Updates names and pictures. The order, and so the key, stays the same. */
  function updateDetails(products: Product[]) {
    const saved = read(owner.value)
    const updated = saved.lines.map((line) => {
      const product = products.find(({ id }) => id === line.product_id)
      return product ? { ...line, name: product.name, image_url: product.image_url } : line
    })
    if (JSON.stringify(updated) !== JSON.stringify(saved.lines)) write(owner.value, { ...saved, lines: updated })
  }

  /** Returns the order to send: the one whose outcome is unknown, else one of the current lines. */
  function markSent(): CartOrder {
    const saved = read(owner.value)
    const order = saved.sent ?? { key: key.value, lines: lines.value }
    write(owner.value, { ...saved, sent: order })
    return order
  }

  /** Takes the items of a placed order out of the cart. Items added since then stay. */
  function removeOrdered(key: string, order: Order) {
    const cartOwner = String(order.user_id)
    const saved = read(cartOwner)
    // Another tab has done it already.
    if (saved.sent?.key !== key && saved.key !== key) return
    const ordered = new Map(order.items.map((item) => [item.product_id, item.quantity]))
    const left = saved.lines
      .map((line) => ({ ...line, quantity: line.quantity - (ordered.get(line.product_id) ?? 0) }))
      .filter((line) => line.quantity > 0)
    write(cartOwner, { ...saved, lines: left, key: newKey(), sent: null })
  }

  /** For an order that was refused. */
  function clearSent(cartOwner: string, key: string) {
    const saved = read(cartOwner)
    if (saved.sent?.key === key) write(cartOwner, { ...saved, sent: null })
  }

  /** For a key that already belongs to another order. */
  function renewKey(cartOwner: string, key: string) {
    const saved = read(cartOwner)
    if (saved.key === key) write(cartOwner, { ...saved, key: newKey() })
  }

  return {
    owner,
    lines,
    key,
    sent,
    count,
    quantityOf,
    maxAddable,
    add,
    setQuantity,
    acceptPrice,
    remove,
    updateDetails,
    markSent,
    removeOrdered,
    clearSent,
    renewKey,
  }
})
