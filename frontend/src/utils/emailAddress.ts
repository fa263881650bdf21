const LOCAL = /^(?!.*=\?)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*$/
const DOMAIN =
  /^(?!(.*\.)?(?!xn)[^.]{2}--)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z0-9][A-Za-z0-9-]{0,61})?[A-Za-z]$/i
/** Of names that lead to no mail server of the internet. */
const SPECIAL = /\.(arpa|invalid|local|localhost|onion)$/i

/** Whether a mail server may take it: the rules for a new account's address, as contracts/users.py has them. */
export function isDeliverableEmail(address: string) {
  const [, local = '', domain = ''] = /^([^@]{1,64})@([^@]+)$/.exec(address) ?? []
  return address.length <= 254 && LOCAL.test(local) && DOMAIN.test(domain) && !SPECIAL.test(domain)
}
