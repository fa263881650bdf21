import { watch } from 'vue'
import { useI18n } from 'vue-i18n'
import { useRoute, useRouter } from 'vue-router'
import { useSession } from '@/stores/session'
import { useToasts } from '@/stores/toasts'

/** A session that ends by itself is said once. A page that needs one is gone into anew by whoever is there then. */
export function useSessionEnd() {
  const { t } = useI18n()
  const session = useSession()
  const toasts = useToasts()
  const route = useRoute()
  const router = useRouter()

  watch([() => session.user?.id, () => session.ended], async ([id, ended]) => {
    // Who logs out here is led on by what they pressed.
    if (!id && !ended) return
    if (ended) toasts.show({ kind: 'info', title: t('session.ended') })
    session.ended = false
    const { path, query, hash, meta } = route
    if (meta.requires) await router.replace({ path, query, hash, force: true })
  })
}
