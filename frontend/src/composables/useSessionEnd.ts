import { watch } from 'vue'
import { useI18n } from 'vue-i18n'
import { useRoute, useRouter } from 'vue-router'
import { useSession } from '@/stores/session'
import { useToasts } from '@/stores/toasts'

/** Shows one toast when the session ends by itself. A page that requires a login is entered again, by the new user. */
export function useSessionEnd() {
  const { t } = useI18n()
  const session = useSession()
  const toasts = useToasts()
  const route = useRoute()
  const router = useRouter()

  watch([() => session.user?.id, () => session.ended], async ([id, ended]) => {
    // A logout in this tab navigates by itself.
    if (!id && !ended) return
    if (ended) toasts.show({ kind: 'info', title: t('session.ended') })
    session.ended = false
    const { path, query, hash, meta } = route
    if (meta.requires) await router.replace({ path, query, hash, force: true })
  })
}
