/** Writes a gzip copy beside every built file that becomes smaller, for nginx's gzip_static. */

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { constants, gzipSync } from 'node:zlib'

for (const entry of readdirSync(process.argv[2], { recursive: true, withFileTypes: true })) {
  if (!entry.isFile() || !/\.(css|html|js|json|svg|txt|webmanifest)$/.test(entry.name)) continue
  const path = join(entry.parentPath, entry.name)
  const body = readFileSync(path)
  const copy = gzipSync(body, { level: constants.Z_BEST_COMPRESSION })
  if (copy.length < body.length) writeFileSync(`${path}.gz`, copy)
}
