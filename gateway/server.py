"""An entrypoint that serves a WSGI app in its Nameko container's event loop.

    class Gateway:
        name = "gateway"
        config = Config()

        @wsgi_server
        def app(self):
            return create_app(self.config)

The method is called once, at the start, in a worker, so with its dependencies injected. Several
processes may share the port. Stopping: no more connections are accepted, the app's `going_away()`,
if it has one, is called to end what never ends by itself (WebSockets), running requests get
STOP_SECONDS to finish, kept-alive connections are closed after the answer they wait for.

No client can hold a greenlet for ever: the head of a request, its body, reading the answer and the
pause between two requests each have a time in which they must be over, and lines, heads and what is
thrown away of an unread body have sizes.
"""

import logging
from collections import Counter
from contextlib import suppress

import eventlet
from eventlet import greenio, wsgi
from eventlet.event import Event
from eventlet.green import socket
from nameko.extensions import Entrypoint

from gateway.addresses import ClientAddresses
from nameko_reliable.telemetry.tracing import Tracer
from nameko_reliable.web.protocol import KEEPALIVE_SECONDS, Protocol
from nameko_reliable.web.requests import Requests

logger = logging.getLogger(__name__)

# More than the sockets of gateway/live.py, which keep theirs.
MAX_CONNECTIONS = 5120
# Of one address; a RATE_LIMIT_SCALE above 1 multiplies it. Proxies of TRUSTED_PROXIES may have more.
MAX_CONNECTIONS_EACH = 512
BACKLOG = 1024
# For each single send or receive.
SOCKET_TIMEOUT_SECONDS = 30
STOP_SECONDS = 8


class WsgiServer(Entrypoint):
    """Listens on config's GATEWAY_PORT; 0 takes a free one, which `port` then names."""

    tracer = Tracer()

    def setup(self):
        config = self.container.config
        port = config["GATEWAY_PORT"]
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._listener.bind(("0.0.0.0", port))
        except OSError as error:
            raise SystemExit(
                f"The gateway can't listen on port {port} ({error.strerror}): free it or set GATEWAY_PORT to another."
            ) from None
        self.port = self._listener.getsockname()[1]
        self._pool = eventlet.GreenPool(MAX_CONNECTIONS)
        self._connections = set()
        self._of_address = Counter()
        self._addresses = ClientAddresses(config["TRUSTED_PROXIES"])
        self._most_of_address = MAX_CONNECTIONS_EACH * max(1, config["RATE_LIMIT_SCALE"])
        self._stopping = False

    def start(self):
        self._app = self._call_method()
        self._server = wsgi.Server(
            self._listener,
            self._listener.getsockname(),
            Requests(self._app, self.container.service_name, self.tracer),
            protocol=Protocol,
            # Only a backstop: Protocol answers what is longer than its own limit.
            url_length_limit=wsgi.MAX_TOTAL_HEADER_SIZE,
            keepalive=KEEPALIVE_SECONDS,
            socket_timeout=SOCKET_TIMEOUT_SECONDS,
            max_http_version="HTTP/1.1",
            log_output=False,
            debug=False,
        )
        # Names are written as they are given: a keyword argument for this would warn.
        self._server.capitalize_response_headers = False
        self._listener.listen(BACKLOG)
        self._acceptor = self.container.spawn_managed_thread(self._accept, identifier="wsgi_server.accept")
        logger.info("listening on port %d", self.port)

    def stop(self):
        self._stopping = True
        self._acceptor.kill()
        self._take_waiting_connections()
        self._listener.close()
        # From here on every answer says `Connection: close`.
        self._server.keepalive = False
        for connection in list(self._connections):
            _, client, state = connection
            if state == wsgi.STATE_IDLE:
                _stop_reading(client)
        getattr(self._app, "going_away", lambda: None)()
        with eventlet.Timeout(STOP_SECONDS, False):
            self._pool.waitall()
        if self._pool.running():
            logger.warning("%d requests were cut off by the stop", self._pool.running())
            for greenlet in list(self._pool.coroutines_running):
                eventlet.kill(greenlet)

    def kill(self):
        self._acceptor.kill()
        self._listener.close()

    def _call_method(self):
        returned = Event()

        def keep(worker_ctx, result, exc_info):
            returned.send(result) if exc_info is None else returned.send_exception(exc_info[1])
            return result, exc_info

        self.container.spawn_worker(self, (), {}, handle_result=keep)
        return returned.wait()

    def _accept(self):
        while True:
            try:
                client, address = self._listener.accept()
            except OSError as error:
                # No file descriptor left, or the client left before its turn.
                logger.warning("a connection was not accepted: %s", error)
                eventlet.sleep(0.1)
            else:
                self._serve(client, address)

    def _take_waiting_connections(self):
        """Whoever connected before the stop still gets an answer."""
        self._listener.setblocking(False)
        while True:
            try:
                client, address = self._listener.accept()
            except ConnectionAbortedError:
                pass  # The client left before its turn.
            except OSError:
                return  # Nobody waits, or nobody more can be served, as when another stop has closed the listener.
            else:
                self._serve(client, address)

    def _serve(self, client, address):
        host = address[0]
        if self._of_address[host] >= self._most_of_address and not self._addresses.trusts(host):
            # Before anything is read: who holds that many open would else keep all others out.
            client.close()
            return
        self._of_address[host] += 1
        client.settimeout(SOCKET_TIMEOUT_SECONDS)
        # An answer of more than one segment must not wait for the acknowledgement of the first.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection((address, client, wsgi.STATE_IDLE))
        self._connections.add(connection)
        self._pool.spawn_n(self._handle, connection)

    def _handle(self, connection):
        try:
            self._server.process_request(connection)
        except OSError as error:
            logger.debug("connection lost: %s", error)
        except Exception:
            logger.exception("a connection failed")
        finally:
            self._connections.discard(connection)
            host = connection[0][0]
            self._of_address[host] -= 1
            if not self._of_address[host]:
                del self._of_address[host]
            greenio.shutdown_safe(connection[1])
            connection[1].close()


wsgi_server = WsgiServer.decorator


class _Connection(list):
    """[address, socket, state], as eventlet.wsgi wants it, but hashable."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def _stop_reading(client):
    """What the client has sent already is still answered."""
    with suppress(OSError):
        client.shutdown(socket.SHUT_RD)
