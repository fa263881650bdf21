import { type AsyncComponentLoader, type Component, defineAsyncComponent } from 'vue'
import { backoffMs } from '@/utils/backoff'

/** A component whose code is loaded later. A failed load is retried without end. */
export const lazyComponent = <C extends Component>(loader: AsyncComponentLoader<C>) =>
  defineAsyncComponent({
    loader,
    onError: (_, retry, __, attempts) => void setTimeout(retry, backoffMs(attempts)),
  })
