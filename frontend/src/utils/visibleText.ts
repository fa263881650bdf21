const CONTROL_CHARACTERS = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/
/** Format characters, except joiners between letters or emoji. */
const INVISIBLE = /(?![\u200c\u200d])\p{Cf}|(?<![\p{L}\p{M}\p{S}])[\u200c\u200d]|[\u200c\u200d](?![\p{L}\p{S}])/u
const VISIBLE = /(?![\u115f\u1160\u2800\u3164\uffa0])[\p{L}\p{N}\p{P}\p{S}\p{Cn}\p{Co}]/u

/** Whether it has no invisible characters, by the rules of contracts/names.py. */
export const isFullyVisible = (text: string) => !INVISIBLE.test(text)

/** Whether it is one line with something visible and nothing invisible. */
export const isVisibleLine = (text: string) =>
  !CONTROL_CHARACTERS.test(text) && isFullyVisible(text) && VISIBLE.test(text)

/** Counts as the server does: normalized, in code points. */
export const characterCount = (text: string, form: 'NFC' | 'NFKC' = 'NFC') => [...text.normalize(form)].length
