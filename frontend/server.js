/**
 * The built storefront and the way to the gateway: for `make run` what nginx.conf is for Docker.
 *
 * FRONTEND_PORT, GATEWAY_PORT and FRONTEND_URL come from the environment; the argument is the folder to serve, or
 * `dist`. It is read once, at the start: another build beside does no harm.
 */

import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { Agent, createServer, ServerResponse } from 'node:http'
import { join, relative } from 'node:path'
import { createProxyServer } from 'httpxy'
import { lookup } from 'mrmime'

const port = Number(process.env.FRONTEND_PORT || 8080)
const target = `http://127.0.0.1:${process.env.GATEWAY_PORT || 3000}`

// As gateway/headers.py has them; tests hold the two together.
const SECURITY = {
  'Content-Security-Policy':
    "default-src 'self'; img-src 'self' https: data:; object-src 'none'; base-uri 'none'; " +
    "form-action 'self'; frame-ancestors 'none'",
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
}
if (/^https:/i.test(process.env.FRONTEND_URL ?? '')) SECURITY['Strict-Transport-Security'] = 'max-age=31536000'

// No page's address ends like a file's name.
const FILES_ALONE = /^\/(assets|pictures)\/|\.\w+$/
const ACCEPTS_PAGE = /text\/html|^\*\/\*$|^$/
const ENDINGS = { br: '.br', gzip: '.gz' }
// The gateway closes a connection that was idle for longer, just when we might use it again.
const IDLE_MS = 60_000
const ANSWER_MS = 60_000

const files = read(process.argv[2] ?? join(import.meta.dirname, 'dist'))
const agent = new Agent({ keepAlive: true, timeout: IDLE_MS })
const proxy = createProxyServer({ target, proxyTimeout: ANSWER_MS, upgradeTimeout: ANSWER_MS })
const server = createServer()
// What a stop may cut off: WebSockets, and the connections on which nobody waits for an answer.
const idle = new Set()

server.on('connection', (socket) => {
  idle.add(socket)
  socket.on('close', () => idle.delete(socket))
})

server.on('request', (request, response) => {
  const { socket } = request
  idle.delete(socket)
  // A client may ask several things at once.
  socket.unanswered = (socket.unanswered ?? 0) + 1
  response.on('close', () => {
    if (--socket.unanswered) return
    if (!server.listening) socket.destroySoon()
    else if (!socket.destroyed) idle.add(socket)
  })
  if (request.url.startsWith('/api/')) {
    request.url = request.url.slice('/api'.length)
    pass(request, response)
  } else if (request.url.startsWith('/ws/')) {
    pass(request, response)
  } else {
    answerWithFile(request, response)
  }
})

server.on('upgrade', (request, socket, head) => {
  socket.on('error', () => socket.destroy())
  // Whoever has been told the last thing is not heard any more: what is unread would keep the socket open for ever.
  socket.on('finish', () => socket.destroy())
  // An offer of anything else, like h2c, may be ignored; but Node has stopped reading, and so would miss a body.
  const hasBody = request.headers['transfer-encoding'] || Number(request.headers['content-length'])
  if (request.headers.upgrade.toLowerCase() !== 'websocket' && !hasBody) {
    server.emit('request', request, overSocket(request, socket))
    return
  }
  if (!request.url.startsWith('/ws/')) {
    refuse(overSocket(request, socket), 404, 'There is no WebSocket at this address.')
    return
  }
  if (!namesClient(request)) return socket.destroy()
  // What it can reject with has gone to the error handler below.
  proxy.ws(request, socket, {}, head).catch(() => socket.destroy())
})

// Before the proxy itself hears of it, and hangs up.
proxy.on('proxyReqWs', (handshake, request, socket) => {
  const sayAway = () => socket.destroyed || sayGatewayIsAway(overSocket(request, socket))
  handshake.once('error', sayAway)
  for (const answer of ['upgrade', 'response']) handshake.once(answer, () => handshake.off('error', sayAway))
  handshake.once('upgrade', (answer, upstream) => socket.once('close', () => upstream.destroy()))
})

proxy.on('error', (error, request, client) => {
  if (!(client instanceof ServerResponse)) return
  if (client.headersSent) client.destroy()
  else sayGatewayIsAway(client)
})

server.on('error', (error) => {
  console.error(`The storefront can't listen on port ${port} (${error.code}): free it or set FRONTEND_PORT to another.`)
  process.exit(1)
})

server.listen(port, '127.0.0.1', () => console.log(`listening on port ${port}`))

process.on('SIGTERM', () => {
  server.close(() => process.exit())
  for (const socket of idle) socket.destroy()
})

function read(folder) {
  try {
    const entries = readdirSync(folder, { recursive: true, withFileTypes: true })
    const shown = entries.filter((entry) => entry.isFile() && !entry.name.startsWith('.'))
    const paths = shown.map((entry) => join(entry.parentPath, entry.name))
    return new Map(paths.map((path) => [`/${relative(folder, path)}`, fileOf(readFileSync(path))]))
  } catch (error) {
    console.error(`The built storefront can't be read (${error.message}): run \`npm run build\` in frontend/.`)
    process.exit(1)
  }
}

function fileOf(body) {
  return { body, etag: `"${createHash('sha256').update(body).digest('base64url').slice(0, 22)}"` }
}

function answerWithFile(request, response) {
  let path
  try {
    path = decodeURIComponent(request.url.split('?')[0])
  } catch {
    return refuse(response, 400, "The address can't be read.")
  }
  if (!files.has(path)) {
    // A page of the storefront, which finds out by itself which one.
    if (FILES_ALONE.test(path) || !ACCEPTS_PAGE.test(request.headers.accept ?? '')) {
      return refuse(response, 404, 'There is nothing at this address.')
    }
    path = '/index.html'
  }
  if (!['GET', 'HEAD'].includes(request.method)) {
    return refuse(response, 405, 'This address does not take that method.', { Allow: 'GET, HEAD' })
  }
  const coding = Object.keys(ENDINGS).find((coding) => accepts(request, coding) && files.has(path + ENDINGS[coding]))
  const { body, etag } = files.get(coding ? path + ENDINGS[coding] : path)
  const headers = { ...SECURITY, ETag: etag, 'Cache-Control': caching(path), Vary: 'Accept-Encoding' }
  if ((request.headers['if-none-match'] ?? '').includes(etag)) {
    response.writeHead(304, headers).end()
    return
  }
  const type = lookup(path) ?? 'application/octet-stream'
  headers['Content-Type'] = /^text\//.test(type) ? `${type}; charset=utf-8` : type
  headers['Content-Length'] = body.length
  if (coding) headers['Content-Encoding'] = coding
  response.writeHead(200, headers).end(body)
}

function caching(path) {
  if (path.startsWith('/assets/')) return 'public, max-age=31536000, immutable'
  return path.startsWith('/pictures/') ? 'public, max-age=86400' : 'no-cache'
}

function accepts(request, coding) {
  const entries = (request.headers['accept-encoding'] ?? '').split(',')
  return entries.some((entry) => {
    const [name, quality] = entry.trim().split(/\s*;\s*q=/)
    return name === coding && Number(quality ?? 1) > 0
  })
}

function pass(request, response) {
  if (!namesClient(request)) return response.destroy()
  proxy.web(request, response, { agent }).catch(() => response.destroy())
}

/**
 * Tells the gateway who asks: nobody stands in front of us, so what a client says of this is made up.
 * False when the client has gone already and has no address any more; the proxy would fail over that.
 */
function namesClient(request) {
  request.headers['x-forwarded-for'] = request.socket.remoteAddress
  return Boolean(request.socket.remoteAddress)
}

function sayGatewayIsAway(response) {
  const problem = {
    type: 'gateway-away',
    title: 'Gateway away',
    status: 502,
    detail: 'The shop does not answer just now. What was asked of it may have happened.',
  }
  const headers = { 'Content-Type': 'application/problem+json', 'Cache-Control': 'no-store', 'Retry-After': 2 }
  response.writeHead(problem.status, { ...SECURITY, ...headers }).end(JSON.stringify(problem))
}

function refuse(response, status, sentence, headers = {}) {
  const plain = { 'Content-Type': 'text/plain; charset=utf-8', 'Cache-Control': 'no-store' }
  response.writeHead(status, { ...SECURITY, ...plain, ...headers }).end(`${sentence}\n`)
}

/** The answer to a handshake that leads to no WebSocket. */
function overSocket(request, socket) {
  const response = new ServerResponse(request)
  response.shouldKeepAlive = false
  try {
    response.assignSocket(socket)
  } catch {
    // It comes behind a request that is not answered yet, and whose answer would be mixed with this one.
    socket.destroy()
  }
  response.on('finish', () => socket.end())
  return response
}
