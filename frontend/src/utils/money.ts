/** Exact sums of the API's prices, which are decimal strings with two places. */

const cents = (amount: string) => BigInt(amount.replace('.', ''))

export function totalPrice(lines: { price: string; quantity: number }[]): string {
  const sum = lines.reduce((sofar, { price, quantity }) => sofar + cents(price) * BigInt(quantity), 0n)
  const digits = sum.toString().padStart(3, '0')
  return `${digits.slice(0, -2)}.${digits.slice(-2)}`
}
