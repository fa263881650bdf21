import { useI18n } from 'vue-i18n'
import { type CartLine, useCart } from '@/stores/cart'
import { useToasts } from '@/stores/toasts'
import type { CartIssue } from './useCartCheck'

/** Fixes a line that can't be ordered as it is. A removed line can be restored. */
export function useCartFixes() {
  const { t } = useI18n()
  const cart = useCart()
  const toasts = useToasts()

  function remove(line: CartLine) {
    const undo = cart.remove(line.product_id)
    toasts.show({
      kind: 'info',
      title: t('shop.cart.removed', { name: line.name }),
      action: { label: t('action.undo'), run: undo },
    })
  }

  function fix(line: CartLine, issue: CartIssue) {
    if (issue.kind === 'short') cart.setQuantity(line.product_id, issue.available)
    else if (issue.kind === 'price') cart.acceptPrice(line.product_id, issue.price)
    else remove(line)
  }

  return { remove, fix }
}
