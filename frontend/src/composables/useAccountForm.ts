import { useMutation } from '@tanstack/vue-query'
import { nextTick, ref, useTemplateRef } from 'vue'
import { useI18n } from 'vue-i18n'
import { Problem } from '@/api/problem'

/** The sentences of what is wrong, by field. */
export type Errors = Record<string, string | undefined>

/**
 * A form about an account, the template's `ref="form"`. What is wrong stands beside its field, the first of which gets
 * the focus; `failure` is what no field is to blame for.
 *
 * check: what can be told without asking. send: asks. refusal: the fields that a problem is about, where they aren't its own.
 */
export function useAccountForm<Result>(form: {
  check: () => Errors
  send: () => Promise<Result>
  done: (result: Result) => unknown
  refusal?: (problem: Problem) => Errors
}) {
  const { t, te } = useI18n()
  const element = useTemplateRef<HTMLFormElement>('form')
  const errors = ref<Errors>({})
  const failure = ref<Problem | null>(null)
  const isBusy = ref(false)

  const { mutate } = useMutation({
    mutationFn: form.send,
    onSuccess: (result) => form.done(result),
    async onError(error) {
      if (!(error instanceof Problem)) throw error
      errors.value = { ...ownWords(error.fields), ...form.refusal?.(error) }
      failure.value = Object.keys(errors.value).length ? null : error
      await focusWrong()
    },
    onSettled: () => (isBusy.value = false),
  })

  /** The API's sentences are English. */
  const ownWords = (fields: Record<string, string>) =>
    Object.fromEntries(
      Object.entries(fields).map(([name, sentence]) => [
        name,
        te(`account.refused.${name}`, 'en') ? t(`account.refused.${name}`) : sentence,
      ]),
    )

  async function focusWrong() {
    await nextTick()
    element.value?.querySelector<HTMLElement>('[aria-invalid="true"]')?.focus()
  }

  async function submit() {
    if (isBusy.value) return
    failure.value = null
    errors.value = Object.fromEntries(Object.entries(form.check()).filter(([, sentence]) => sentence))
    isBusy.value = !Object.keys(errors.value).length
    if (isBusy.value) mutate()
    else await focusWrong()
  }

  return { submit, errors, failure, isPending: isBusy }
}
