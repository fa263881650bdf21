import { useI18n } from 'vue-i18n'
import type { Product } from '@/api/client'
import { MAX_LINES, useCart } from '@/stores/cart'
import { useToasts } from '@/stores/toasts'

let lastToast = 0

/** Adds to the cart and shows a toast, which replaces the last one. */
export function useAddToCart() {
  const { t } = useI18n()
  const cart = useCart()
  const toasts = useToasts()

  return (product: Product, quantity = 1) => {
    toasts.dismiss(lastToast)
    const isFull = cart.lines.length >= MAX_LINES && !cart.quantityOf(product.id)
    if (!cart.add(product, quantity)) {
      lastToast = toasts.show({
        kind: 'error',
        title: isFull ? t('shop.cart.full', { n: MAX_LINES }) : t('shop.cart.noMore'),
      })
      return
    }
    lastToast = toasts.show({
      kind: 'success',
      title: t('shop.cart.added', { name: product.name }),
      text: t('shop.cart.holds', cart.quantityOf(product.id)),
      link: { to: { name: 'cart' }, label: t('shop.cart.view') },
    })
  }
}
