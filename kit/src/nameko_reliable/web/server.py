"""A server that runs a WSGI app for the connections of a listener.

    listener = Listener("0.0.0.0", 8080, max_connections=1000, timeout_seconds=30)
    server = HttpServer(listener, app, service="bakery", tracer=tracer)
    server.start(container.spawn_managed_thread, backlog=1024)
    …
    server.stop(seconds=8)

The app may have an attribute `answer_headers`, {name: value}, added to every answer. It may have a method
`going_away()`, which a stop calls to end WebSockets.

A stop accepts no more connections, lets running requests finish, and closes keep-alive connections once they have no
request left.

Not guaranteed: that every request finishes. A stop cuts off and logs those that take longer than its seconds.
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
            # Protocol has its own, lower limit, and answers what exceeds that.
            url_length_limit=wsgi.MAX_TOTAL_HEADER_SIZE,
            keepalive=KEEPALIVE_SECONDS,
            socket_timeout=listener.timeout_seconds,
            max_http_version="HTTP/1.1",
            log_output=False,
            debug=False,
        )
        # Keep the case of header names. The keyword argument for this warns.
        self._server.capitalize_response_headers = False

    def start(self, spawn: Callable[..., Any], backlog: int) -> None:
        self._listener.listen(self._server.process_request, backlog)
        self._acceptor = spawn(self._listener.accept, identifier="wsgi_server.accept")

    def stop(self, seconds: float) -> None:
        self._acceptor.kill()
        # Clients that connected before the stop still get an answer.
        self._listener.accept_waiting()
        self._listener.close()
        # Every later answer says `Connection: close`.
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
    """End a connection for new requests. One that has already arrived is still answered."""
    with suppress(OSError):
        client.shutdown(socket.SHUT_RD)
