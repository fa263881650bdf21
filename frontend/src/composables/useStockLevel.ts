import { computed, toValue, type MaybeRefOrGetter } from 'vue'
import { useI18n } from 'vue-i18n'
import type { Product } from '@/api/client'
import { formatNumber } from '@/utils/format'

const LOW_STOCK = 5

/** How much there is of a product: its level and the words for it. */
export function useStockLevel(product: MaybeRefOrGetter<Product>) {
  const { t } = useI18n()

  const level = computed(() => {
    const { is_active, stock_quantity } = toValue(product)
    if (!is_active) return 'gone'
    if (!stock_quantity) return 'soldOut'
    return stock_quantity <= LOW_STOCK ? 'low' : 'inStock'
  })
  const label = computed(() => t(`shop.stock.${level.value}`, { n: formatNumber(toValue(product).stock_quantity) }))

  return { level, label }
}
