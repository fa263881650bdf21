import userEvent from '@testing-library/user-event'
import { screen } from '@testing-library/vue'
import { useQuery } from '@tanstack/vue-query'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { computed } from 'vue'
import { getProduct } from '@/api/products'
import { queries } from '@/queries'
import { renderInApp } from '@/testing/render'
import { jsonResponse, product, stubNetwork } from '@/testing/api'
import { latestSocket, stubSockets } from '@/testing/socket'
import { useLiveFeed } from '@/stores/liveFeed'
import { useProducts } from './useCatalogue'
import { useLiveProducts } from './useLiveProducts'
import { useProduct } from './useProduct'

let pinia: Pinia

beforeEach(stubSockets)
afterEach(() => disposePinia(pinia))

const Stock = {
  setup() {
    const { data } = useQuery({ queryKey: ['product', 1], queryFn: () => getProduct(1) })
    useLiveProducts([1])
    return { data }
  },
  template: '<p>{{ data?.stock_quantity }} left</p>',
}

async function open() {
  const rendered = await renderInApp(Stock)
  pinia = rendered.pinia
  useLiveFeed(pinia).open()
  return rendered
}

const pushUpdate = (stock_quantity: number, revision: number) =>
  latestSocket().receive({
    type: 'product',
    data: { id: 1, price: '14.50', stock_quantity, is_active: true, revision },
  })

test('a pushed update shows at once and does not refresh the age of the cached product', async () => {
  stubNetwork(() => jsonResponse(product({ stock_quantity: 9 })))
  const { queryClient } = await open()
  await screen.findByText('9 left')
  const readAt = queryClient.getQueryState(['product', 1])!.dataUpdatedAt

  pushUpdate(8, 1)

  expect(await screen.findByText('8 left')).toBeVisible()
  expect(queryClient.getQueryState(['product', 1])!.dataUpdatedAt).toBe(readAt)
})

test('a response requested before a pushed update does not undo it', async () => {
  let reply: (response: Response) => void = () => {}
  stubNetwork(() => new Promise((done) => (reply = done)))
  await open()

  pushUpdate(7, 2)
  reply(jsonResponse(product({ stock_quantity: 9 })))

  expect(await screen.findByText('7 left')).toBeVisible()
})

test('products are refetched after a reconnect', async () => {
  let stock = 9
  stubNetwork(() => jsonResponse(product({ stock_quantity: stock })))
  await open()
  await screen.findByText('9 left')
  stock = 5

  latestSocket().greet()

  await vi.waitFor(() => expect(screen.getByText('5 left')).toBeVisible())
  expect(latestSocket().sentOf('watch')).toEqual([{ type: 'watch', product_ids: [1] }])
})

const ASKED = { limit: 24 }
const SHOWN = {
  'one product': () => useProduct(1).data,
  'a page of products': () => {
    const { data } = useProducts(ASKED)
    return computed(() => data.value?.items[0])
  },
}

test.each(Object.entries(SHOWN))('%s shows from the cache at once and is refetched', async (_, read) => {
  let reply: (stock: number) => void = () => {}
  stubNetwork(async (_, path) => {
    const found = product({ stock_quantity: await new Promise<number>((resolve) => (reply = resolve)) })
    return jsonResponse(path === '/api/products' ? { items: [found], total: 1 } : found)
  })
  const Shown = {
    setup: () => ({ product: read() }),
    template: '<p v-if="product">{{ product.stock_quantity }} left</p>',
  }
  const Visited = {
    components: { Shown },
    data: () => ({ isHere: false }),
    template: '<Shown v-if="isHere" /><button @click="isHere = !isHere">Go</button>',
  }
  const rendered = await renderInApp(Visited)
  pinia = rendered.pinia
  rendered.queryClient.setDefaultOptions(queries.getDefaultOptions())
  const go = () => userEvent.click(screen.getByRole('button'))
  await go()
  reply(9)
  await screen.findByText('9 left')
  await go()

  await go()

  expect(screen.getByText('9 left')).toBeVisible()
  reply(5)
  expect(await screen.findByText('5 left')).toBeVisible()
})
