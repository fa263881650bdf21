"""The entrypoint that serves the gateway's WSGI app in its Nameko container's event loop.

    class Gateway:
        name = "gateway"
        config = Config()

        @wsgi_server
        def app(self):
            return create_app(self.config)

The method is called once, at the start, in a worker, with its dependencies injected. Several gateways may share the
port. The kit parses requests, limits their time and stops the server: nameko_reliable.web.protocol and
nameko_reliable.web.server.
"""

import logging
from typing import Any

from eventlet.event import Event
from nameko.extensions import Entrypoint

from gateway.addresses import TrustedProxies
from nameko_reliable.telemetry.tracing import Tracer
from nameko_reliable.web.listener import Listener
from nameko_reliable.web.server import HttpServer

logger = logging.getLogger(__name__)

# More than MAX_SOCKETS of gateway/live.py, as each socket holds a connection.
MAX_CONNECTIONS = 5120
# Of one address. A RATE_LIMIT_SCALE above 1 multiplies it. TRUSTED_PROXIES are exempt.
MAX_CONNECTIONS_PER_ADDRESS = 512
BACKLOG = 1024
# For each single send or receive.
SOCKET_TIMEOUT_SECONDS = 30
STOP_SECONDS = 8


class WsgiServer(Entrypoint):
    """Listens on GATEWAY_PORT. With 0 it takes a free port. port: the port it listens on."""

    tracer = Tracer()

    def setup(self) -> None:
        config = self.container.config
        port = config["GATEWAY_PORT"]
        try:
            self.listener = Listener(
                "0.0.0.0",
                port,
                max_connections=MAX_CONNECTIONS,
                timeout_seconds=SOCKET_TIMEOUT_SECONDS,
                max_per_address=MAX_CONNECTIONS_PER_ADDRESS * max(1, config["RATE_LIMIT_SCALE"]),
                is_exempt=TrustedProxies(config["TRUSTED_PROXIES"]).contains,
                shares_port=True,
            )
        except OSError as error:
            raise SystemExit(
                f"The gateway can't listen on port {port} ({error.strerror}): free it or set GATEWAY_PORT to another."
            ) from None
        self.port = self.listener.port

    def start(self) -> None:
        self._server = HttpServer(self.listener, self._call_method(), self.container.service_name, self.tracer)
        self._server.start(self.container.spawn_managed_thread, BACKLOG)
        logger.info("listening on port %d", self.port)

    def stop(self) -> None:
        self._server.stop(STOP_SECONDS)

    def kill(self) -> None:
        self._server.kill()

    def _call_method(self) -> Any:
        returned = Event()

        def keep(worker_ctx: Any, result: Any, exc_info: Any) -> tuple[Any, Any]:
            returned.send(result) if exc_info is None else returned.send_exception(exc_info[1])
            return result, exc_info

        self.container.spawn_worker(self, (), {}, handle_result=keep)
        return returned.wait()


wsgi_server = WsgiServer.decorator
