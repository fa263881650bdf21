import { screen } from '@testing-library/vue'
import { expect, test } from 'vitest'
import { renderInApp } from '@/testing/render'
import { jsonResponse, notification, stubNetwork } from '@/testing/api'
import NotificationRetry from './NotificationRetry.vue'

test('when the retry button disappears, the heading gets its focus', async () => {
  stubNetwork(() => jsonResponse(notification()))
  const Page = {
    components: { NotificationRetry },
    data: () => ({ isFailed: true }),
    template:
      '<h1 tabindex="-1">Notifications</h1><NotificationRetry v-if="isFailed" :id="1" :reason="null" /><p @click="isFailed = false">Sent</p>',
  }
  await renderInApp(Page)
  screen.getByRole('button', { name: 'Send it again' }).focus()

  screen.getByText('Sent').click()

  await expect.poll(() => document.activeElement).toBe(screen.getByRole('heading'))
})
