"""A WSGI app, served to the clients of a listener.

    listener = Listener("0.0.0.0", 8080, max_connections=1000, timeout_seconds=30)
    server = HttpServer(listener, app, service="bakery", tracer=tracer)
    server.start(container.spawn_managed_thread, backlog=1024)
    …
    server.stop(seconds=8)

The app may have `answer_headers`, {name: value}, which every answer carries, and `going_away()`, which a stop calls to
end what never ends by itself: WebSockets.

A stop accepts no more connections, lets running requests finish, and closes kept-alive connections after the answer
they wait for.

Not guaranteed: that a request is finished. What takes longer than the stop's seconds is cut off, and logged.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from wsgiref.types import WSGIApplication

from eventlet import wsgi
from eventlet.green import socket

from nameko_reliable.telemetry.tracing import Tracer
from nameko_reliable.web.listener import Listener
from nameko_reliable.web.protocol import KEEPALIVE_SECONDS, Protocol
from nameko_reliable.web.requests import RequestMiddleware


class HttpServer:
    def __init__(self, listener: Listener, app: WSGIApplication, service: str, tracer: Tracer) -> None:
        self._listener = listener
        self._app = app
        self._server = wsgi.Server(
            listener.socket,
            listener.socket.getsockname(),
            RequestMiddleware(app, service, tracer),
            protocol=Protocol,
            # Only a backstop: Protocol answers what is longer than its own limit.
            url_length_limit=wsgi.MAX_TOTAL_HEADER_SIZE,
            keepalive=KEEPALIVE_SECONDS,
            socket_timeout=listener.timeout_seconds,
            max_http_version="HTTP/1.1",
            log_output=False,
            debug=False,
        )
        # Names are written as they are given: a keyword argument for this would warn.
        self._server.capitalize_response_headers = False

    def start(self, spawn: Callable[..., Any], backlog: int) -> None:
        self._listener.listen(self._server.process_request, backlog)
        self._acceptor = spawn(self._listener.accept, identifier="wsgi_server.accept")

    def stop(self, seconds: float) -> None:
        self._acceptor.kill()
        # A client that connected before the stop still gets an answer.
        self._listener.accept_waiting()
        self._listener.close()
        # From here on every answer says `Connection: close`.
        self._server.keepalive = False
        for _, client, state in list(self._listener.connections):
            if state == wsgi.STATE_IDLE:
                _stop_reading(client)
        getattr(self._app, "going_away", lambda: None)()
        self._listener.finish(seconds)

    def kill(self) -> None:
        self._acceptor.kill()
        self._listener.close()


def _stop_reading(client: Any) -> None:
    """What the client has sent already is still answered."""
    with suppress(OSError):
        client.shutdown(socket.SHUT_RD)
