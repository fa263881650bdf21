import userEvent from '@testing-library/user-event'
import { screen } from '@testing-library/vue'
import { beforeEach, expect, test, vi } from 'vitest'
import { renderInApp } from '@/testing/render'
import AccountMenu from './AccountMenu.vue'

const Page = { template: '<h1 tabindex="-1">Page</h1>', mounted: () => document.querySelector('h1')!.focus() }
const App = { components: { AccountMenu, Page }, template: '<AccountMenu /><Page :key="$route.path" />' }

// Missing in jsdom.
beforeEach(
  () =>
    void vi.stubGlobal(
      'ResizeObserver',
      class {
        observe() {}
        unobserve() {}
        disconnect() {}
      },
    ),
)

async function choose(name: string) {
  screen.getByRole('button', { name: 'Account' }).focus()
  await userEvent.keyboard('{Enter}')
  ;(await screen.findByRole('menuitem', { name })).focus()
  await userEvent.keyboard('{Enter}')
  await expect.poll(() => screen.queryByRole('menu')).toBeNull()
}

test('a page opened from the menu keeps the focus', async () => {
  await renderInApp(App)

  await choose('Orders')

  // The menu returns the focus a moment after it has closed.
  await new Promise((done) => setTimeout(done, 20))
  expect(screen.getByRole('heading')).toHaveFocus()
})

test('choosing the current page in the menu returns the focus to its button', async () => {
  await renderInApp(App, { at: '/orders' })

  await choose('Orders')

  await expect.poll(() => document.activeElement).toBe(screen.getByRole('button', { name: 'Account' }))
})
