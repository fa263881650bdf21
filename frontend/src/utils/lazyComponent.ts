import { type AsyncComponentLoader, type Component, defineAsyncComponent } from 'vue'
import { backoffMs } from '@/utils/backoff'

/** A component that the page can do without until its code has come. What can't be loaded is tried again, without end. */
export const lazyComponent = <C extends Component>(loader: AsyncComponentLoader<C>) =>
  defineAsyncComponent({
    loader,
    onError: (_, retry, __, attempts) => void setTimeout(retry, backoffMs(attempts)),
  })
