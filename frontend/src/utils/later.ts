import { type AsyncComponentLoader, type Component, defineAsyncComponent } from 'vue'
import { pauseBefore } from '@/api/feed'

/** A component that the page can do without until its code has come. What can't be loaded is tried again, without end. */
export const later = <C extends Component>(loader: AsyncComponentLoader<C>) =>
  defineAsyncComponent({
    loader,
    onError: (_, retry, __, attempts) => void setTimeout(retry, pauseBefore(attempts)),
  })
