import { useMutation } from '@tanstack/vue-query'
import { nextTick, ref, useTemplateRef } from 'vue'
import { useI18n } from 'vue-i18n'
import { Problem } from '@/api/problem'

/** Error sentences by field. */
export type Errors = Record<string, string | undefined>

/**
 * The state of an account form, the template's `ref="form"`. The first invalid field gets the focus. `failure` is a
 * problem that belongs to no field.
 *
 * validate: checks without a request. fieldErrors: maps a problem to fields, where the problem doesn't name them.
 */
export function useAccountForm<Result>(form: {
  validate: () => Errors
  send: () => Promise<Result>
  onSuccess: (result: Result) => unknown
  fieldErrors?: (problem: Problem) => Errors
}) {
  const { t, te } = useI18n()
  const element = useTemplateRef<HTMLFormElement>('form')
  const errors = ref<Errors>({})
  const failure = ref<Problem | null>(null)
  const isBusy = ref(false)

  const { mutate } = useMutation({
    mutationFn: form.send,
    onSuccess: (result) => form.onSuccess(result),
    async onError(error) {
      if (!(error instanceof Problem)) throw error
      errors.value = { ...translate(error.fields), ...form.fieldErrors?.(error) }
      failure.value = Object.keys(errors.value).length ? null : error
      await focusFirstInvalid()
    },
    onSettled: () => (isBusy.value = false),
  })

  /** In the chosen language, since the API's sentences are English. */
  const translate = (fields: Record<string, string>) =>
    Object.fromEntries(
      Object.entries(fields).map(([name, message]) => [
        name,
        te(`account.refused.${name}`, 'en') ? t(`account.refused.${name}`) : message,
      ]),
    )

  async function focusFirstInvalid() {
    await nextTick()
    element.value?.querySelector<HTMLElement>('[aria-invalid="true"]')?.focus()
  }

  async function submit() {
    if (isBusy.value) return
    failure.value = null
    errors.value = Object.fromEntries(Object.entries(form.validate()).filter(([, message]) => message))
    isBusy.value = !Object.keys(errors.value).length
    if (isBusy.value) mutate()
    else await focusFirstInvalid()
  }

  return { submit, errors, failure, isPending: isBusy }
}
