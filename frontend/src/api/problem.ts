import type { components } from './schema'

export type ProblemBody = components['schemas']['ProblemView'] & Record<string, unknown>

/**
 * A failed request.
 *
 * type: the API's problem type (RFC 9457), or `network` when no answer came.
 * fields: an error sentence for each invalid field. body: the whole problem document.
 */
export class Problem extends Error {
  readonly type: string
  readonly status: number
  readonly body: Partial<ProblemBody>
  readonly retryAfterSeconds: number | null

  constructor(body: Partial<ProblemBody>, response?: Response) {
    super(body.detail ?? body.type ?? 'unknown')
    this.type = body.type ?? (response ? 'unreadable-answer' : 'network')
    this.status = response?.status ?? 0
    this.body = body
    this.retryAfterSeconds = Number(response?.headers.get('Retry-After')) || null
  }

  get fields(): Record<string, string> {
    return Object.fromEntries(
      Object.entries(this.body.errors ?? {}).map(([name, sentences]) => [name, firstSentence(sentences)]),
    )
  }

  /** Whether the same request may succeed in a moment. */
  get isTransient(): boolean {
    return this.type === 'network' || [429, 502, 503, 504].includes(this.status)
  }
}

/** The API nests the errors of lists: {items: {0: {quantity: [sentence]}}}. */
function firstSentence(errors: unknown): string {
  if (typeof errors === 'string') return errors
  return typeof errors === 'object' && errors !== null ? firstSentence(Object.values(errors)[0]) : ''
}
