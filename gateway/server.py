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

import json
import logging
import time
from collections import Counter
from contextlib import suppress
from http import HTTPStatus
from http.client import responses
from uuid import uuid4

import eventlet
from eventlet import greenio, wsgi
from eventlet.event import Event
from eventlet.green import socket
from nameko.extensions import Entrypoint

from gateway.addresses import ClientAddresses
from nameko_reliable.telemetry.tracing import Tracer
from nameko_reliable.web.http11 import (
    REQUEST_LINE,
    MalformedHead,
    StrictChunks,
    StrictHead,
    delimits_body,
    names_one_host,
)
from nameko_reliable.web.requests import Requests

logger = logging.getLogger(__name__)

# More than the sockets of gateway/live.py, which keep theirs.
MAX_CONNECTIONS = 5120
# Of one address; a RATE_LIMIT_SCALE above 1 multiplies it. Proxies of TRUSTED_PROXIES may have more.
MAX_CONNECTIONS_EACH = 512
BACKLOG = 1024
HEAD_SECONDS = 15
BODY_SECONDS = 30
KEEPALIVE_SECONDS = 75
# For each single send or receive.
SOCKET_TIMEOUT_SECONDS = 30
STOP_SECONDS = 8
MAX_REQUEST_LINE_BYTES = 8000
MAX_DISCARDED_BYTES = 8 * 1024 * 1024
# Of an answer that is all written, from its first byte to its last.
ANSWER_SECONDS = 60
LINGER_SECONDS = 1


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
            protocol=_Protocol,
            # Only a backstop: _Protocol answers what is longer than its own limit.
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


class _Protocol(wsgi.HttpProtocol):
    """eventlet's, with deadlines, and refusals that are problem details and name no software."""

    def setup(self):
        super().setup()
        self.wfile = _Answers(self.wfile, self.connection)

    def handle_one_response(self):
        self.wfile.deadline = None
        super().handle_one_response()

    def _read_request_line(self):
        seconds = KEEPALIVE_SECONDS if hasattr(self, "environ") else HEAD_SECONDS
        line = b""
        with eventlet.Timeout(seconds, False):
            line = super()._read_request_line()
        if len(line) < self.server.url_length_limit:
            return line
        # What eventlet would answer is no problem document.
        self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
        return b""

    def parse_request(self):
        # eventlet puts the file back afterwards.
        self.rfile = StrictHead(self.rfile)
        try:
            with eventlet.Timeout(HEAD_SECONDS, TimeoutError("slow request head")):
                if not super().parse_request():
                    self.close_connection = True
                    return False
        except MalformedHead:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        except (wsgi.HeaderLineTooLong, wsgi.HeadersTooLarge):
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return False
        if len(self.raw_requestline) > MAX_REQUEST_LINE_BYTES:
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
            return False
        if (
            not REQUEST_LINE.fullmatch(self.raw_requestline)
            or not names_one_host(self.headers, self.request_version)
            or not delimits_body(self.headers)
        ):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        return True

    def send_error(self, code, message=None, explain=None):
        self.close_connection = True
        title = responses.get(code, "Bad Request")
        problem = {
            "type": title.lower().replace(" ", "-"),
            "title": title,
            "status": int(code),
            "detail": "The request's head can't be taken: it is malformed or too large.",
            "instance": "",
            "request_id": uuid4().hex,
        }
        body = json.dumps(problem).encode()
        headers = {
            "Content-Type": "application/problem+json",
            "Content-Length": len(body),
            "Cache-Control": "no-store",
            **self.server.app.answer_headers,
            "X-Request-ID": problem["request_id"],
            "Connection": "close",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        logger.info("a request was refused: %d %s", code, title, extra={"fields": {"status": int(code)}})
        self.wfile.writelines([f"HTTP/1.1 {int(code)} {title}\r\n{head}\r\n".encode(), body])
        self._let_it_be_read()

    def _let_it_be_read(self):
        """Were the connection closed while the client still sends, the client would lose the answer."""
        with suppress(OSError), eventlet.Timeout(LINGER_SECONDS, False):
            self.connection.shutdown(socket.SHUT_WR)
            while self.connection.recv(65536):
                pass

    def get_environ(self):
        environ = super().get_environ()
        given = environ["eventlet.input"]
        environ["wsgi.input"] = environ["eventlet.input"] = _Body(
            StrictChunks(self.rfile) if given.chunked_input else self.rfile,
            given.content_length,
            self.connection,
            wfile=given.wfile,
            wfile_line=given.wfile_line,
            chunked_input=given.chunked_input,
        )
        if given.chunked_input:
            # It ends by itself: Werkzeug may read it without a Content-Length.
            environ["wsgi.input_terminated"] = True
        return environ


class _Answers:
    """A connection's file for answers. Each has to be read in ANSWER_SECONDS from its first byte."""

    deadline = None

    def __init__(self, wfile, connection):
        self._wfile = wfile
        self._connection = connection
        self.close = wfile.close

    @property
    def closed(self):
        return self._wfile.closed

    def write(self, data):
        self.writelines([data])

    def writelines(self, lines):
        if self.deadline is None:
            self.deadline = time.monotonic() + ANSWER_SECONDS
        try:
            with eventlet.Timeout(max(0.001, self.deadline - time.monotonic()), TimeoutError("slow reader")):
                self._wfile.writelines(lines)
                self._wfile.flush()
        except OSError:
            # What is left in the file must not be waited for once more when it is closed.
            greenio.shutdown_safe(self._connection)
            raise

    def flush(self):
        """Nothing: what is written has been sent."""


class _Body(wsgi.Input):
    """A body that has to be there in BODY_SECONDS from the first read."""

    deadline = None

    def _do_read(self, reader, length=None):
        with self._in_time():
            return super()._do_read(reader, length)

    def _chunked_read(self, rfile, length=None, use_readline=False):
        with self._in_time():
            return super()._chunked_read(rfile, length, use_readline)

    def discard(self, buffer_size=16 << 10):
        """Read what the app left of the body, so that its client reads the answer; not without end."""
        left = MAX_DISCARDED_BYTES
        while left > 0:
            data = self.read(buffer_size)
            if not data:
                return
            left -= len(data)
        raise OSError("the body is too large to throw away")

    def _in_time(self):
        if self.deadline is None:
            self.deadline = time.monotonic() + BODY_SECONDS
        return eventlet.Timeout(max(0.001, self.deadline - time.monotonic()), TimeoutError("slow request body"))
