const LOCAL = /^(?!.*=\?)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*$/
const DOMAIN =
  /^(?!(.*\.)?(?!xn)[^.]{2}--)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z0-9][A-Za-z0-9-]{0,61})?[A-Za-z]$/i
/** Domains without a mail server on the internet. */
const SPECIAL = /\.(arpa|invalid|local|localhost|onion)$/i

/** The rules of contracts/users.py for a new account's address. */
export function isDeliverableEmail(address: string) {
  const [, local = '', domain = ''] = /^([^@]{1,64})@([^@]+)$/.exec(address) ?? []
  return address.length <= 254 && LOCAL.test(local) && DOMAIN.test(domain) && !SPECIAL.test(domain)
}
