const CONTROL_CHARACTERS = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/
/** Format characters, but for the joiners between letters or emoji. */
const INVISIBLE = /(?![\u200c\u200d])\p{Cf}|(?<![\p{L}\p{M}\p{S}])[\u200c\u200d]|[\u200c\u200d](?![\p{L}\p{S}])/u
const VISIBLE = /(?![\u115f\u1160\u2800\u3164\uffa0])[\p{L}\p{N}\p{P}\p{S}\p{Cn}\p{Co}]/u

/** Whether all of it can be seen, as contracts/names.py has it. */
export const isFullyVisible = (text: string) => !INVISIBLE.test(text)

/** Whether it is one line with something to see, and nothing that can't be seen. */
export const isVisibleLine = (text: string) =>
  !CONTROL_CHARACTERS.test(text) && isFullyVisible(text) && VISIBLE.test(text)

/** As the server counts: composed, and what UTF-16 has two units for is one. */
export const characterCount = (text: string, form: 'NFC' | 'NFKC' = 'NFC') => [...text.normalize(form)].length
