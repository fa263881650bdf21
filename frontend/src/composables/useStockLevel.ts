import { computed, toValue, type MaybeRefOrGetter } from 'vue'
import { useI18n } from 'vue-i18n'
import type { Product } from '@/api/client'
import { formatNumber } from '@/utils/format'

const LOW_STOCK = 5

/** A product's stock as a level and as a label. */
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
