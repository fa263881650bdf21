import { screen } from '@testing-library/vue'
import { useQuery } from '@tanstack/vue-query'
import { disposePinia, type Pinia } from 'pinia'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { getProduct } from '@/api/products'
import { renderInApp } from '@/testing/render'
import { answer, product, stubNetwork } from '@/testing/shop'
import { latestSocket, stubSockets } from '@/testing/socket'
import { useLive } from '@/stores/live'
import { useLiveProducts } from './useLiveProducts'

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
  useLive(pinia).open()
  return rendered
}

const tell = (stock_quantity: number, revision: number) =>
  latestSocket().tell({ type: 'product', data: { id: 1, price: '14.50', stock_quantity, is_active: true, revision } })

test('what the feed says of a product is seen at once, and makes nothing else of it newer', async () => {
  stubNetwork(() => answer(product({ stock_quantity: 9 })))
  const { queryClient } = await open()
  await screen.findByText('9 left')
  const readAt = queryClient.getQueryState(['product', 1])!.dataUpdatedAt

  tell(8, 1)

  expect(await screen.findByText('8 left')).toBeVisible()
  expect(queryClient.getQueryState(['product', 1])!.dataUpdatedAt).toBe(readAt)
})

test('an answer that was on its way when the news came does not undo it', async () => {
  let reply: (response: Response) => void = () => {}
  stubNetwork(() => new Promise((done) => (reply = done)))
  await open()

  tell(7, 2)
  reply(answer(product({ stock_quantity: 9 })))

  expect(await screen.findByText('7 left')).toBeVisible()
})

test('what may have been missed is read anew', async () => {
  let stock = 9
  stubNetwork(() => answer(product({ stock_quantity: stock })))
  await open()
  await screen.findByText('9 left')
  stock = 5

  latestSocket().greet()

  await vi.waitFor(() => expect(screen.getByText('5 left')).toBeVisible())
  expect(latestSocket().says('watch')).toEqual([{ type: 'watch', product_ids: [1] }])
})
