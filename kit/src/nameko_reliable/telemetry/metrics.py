"""Metrics and health of a process, on a port of their own that is not public.

    class Bakery:
        name = "bakery"
        metrics = Metrics(prefix="bakery")

/metrics    all metrics of this process, for Prometheus. The names of the kit's own begin with the prefix.
/livez      200: the event loop runs
/readyz     200 while the service's queues are consumed and its database accepts writes, else 503 with the problems

Settings: METRICS_HOST and METRICS_PORT. Port 0 takes a free port, which is logged.
"""

import gc
import logging
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, TypeAlias
from wsgiref.types import StartResponse, WSGIEnvironment

import eventlet
from eventlet import wsgi
from nameko.extensions import DependencyProvider
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, Histogram, disable_created_metrics, generate_latest

from nameko_reliable.amqp.consumers import Consumers
from nameko_reliable.errors import ServiceUnavailable
from nameko_reliable.telemetry.gauges import Inquiries
from nameko_reliable.telemetry.registry import KIT, PrefixedRegistry
from nameko_reliable.web.listener import Connection, Listener

logger = logging.getLogger(__name__)

READY_SECONDS = 2
REQUEST_SECONDS = 5
MAX_REQUESTS = 16
BACKLOG = 64
LAG_INTERVAL_SECONDS = 0.25

# Status, content type and body.
Page: TypeAlias = tuple[HTTPStatus, str, bytes]

NOT_FOUND: Page = HTTPStatus.NOT_FOUND, "text/plain", b"There are /metrics, /livez and /readyz.\n"

SERVICE_INFO = Gauge(
    "service_info", "1 for each service of the process, to join process_* metrics with.", ["service"], registry=KIT
)
LOOP_LAG = Histogram(
    "event_loop_lag_seconds",
    "How late a greenlet wakes up from a sleep of a quarter of a second.",
    ["service"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
    registry=KIT,
)
WORKERS = Gauge("workers", "How many workers the service may run at once.", ["service"], registry=KIT)
BUSY_WORKERS = Gauge("workers_busy", "How many workers are running.", ["service"], registry=KIT)

# They would double the number of series, and rate() needs no creation times.
disable_created_metrics()


class Metrics(DependencyProvider):
    """Use it in one service of each process: a second one would need the same port."""

    inquiries = Inquiries()

    def __init__(self, prefix: str = "nameko") -> None:
        self.prefix = prefix

    def setup(self) -> None:
        config = self.container.config
        host, port = config["METRICS_HOST"], config["METRICS_PORT"]
        try:
            self._listener = Listener(host, port, max_connections=MAX_REQUESTS, timeout_seconds=REQUEST_SECONDS)
            self._listener.listen(self._serve_connection, BACKLOG)
        except OSError as error:
            raise SystemExit(
                f"Metrics can't be served on {host}, port {port} ({error.strerror}): "
                "set METRICS_HOST and METRICS_PORT to a free one, or the port to 0."
            ) from None
        self.port = self._listener.port
        self._threads: list[Any] = []
        self._pages = {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}
        SERVICE_INFO.labels(self.container.service_name).set(1)
        WORKERS.labels(self.container.service_name).set(self.container.max_workers)
        # Without the greenlets of nameko_reliable.polling, which are not in Nameko's pool of workers.
        BUSY_WORKERS.labels(self.container.service_name).set_function(self.container._worker_pool.running)

    def start(self) -> None:
        self._server = wsgi.Server(
            self._listener.socket,
            self._listener.socket.getsockname(),
            self._serve_page,
            keepalive=False,
            socket_timeout=REQUEST_SECONDS,
            log_output=False,
            debug=False,
        )
        loops = self._listener.accept, self._measure_loop_lag
        self._threads = [self.container.spawn_managed_thread(loop) for loop in loops]
        logger.info("serving metrics on port %d", self.port)

    def stop(self) -> None:
        for thread in self._threads:
            thread.kill()
        self._listener.close()

    kill = stop

    def _serve_connection(self, connection: Connection) -> None:
        with eventlet.Timeout(2 * REQUEST_SECONDS, False):
            self._server.process_request(connection)

    def _serve_page(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        page = self._pages.get(environ["PATH_INFO"])
        if page is None or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, content_type, body = NOT_FOUND
        else:
            status, content_type, body = page()
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
        start_response(f"{status.value} {status.phrase}", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _metrics(self) -> Page:
        self.inquiries.refresh()
        text = generate_latest(PrefixedRegistry(KIT, self.prefix)) + generate_latest()
        return HTTPStatus.OK, CONTENT_TYPE_LATEST, text

    def _livez(self) -> Page:
        return HTTPStatus.OK, "text/plain", b"alive\n"

    def _readyz(self) -> Page:
        problems = list(self._problems())
        if problems:
            return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", "".join(f"{each}\n" for each in problems).encode()
        return HTTPStatus.OK, "text/plain", b"ready\n"

    def _problems(self) -> Iterator[str]:
        """Sentences that say why the service cannot work at the moment."""
        extensions = self.container.shared_extensions
        if Consumers in extensions and not extensions[Consumers].connected:
            refused = extensions[Consumers].refused
            yield from (f"The broker refuses {name}: {refusal}" for name, refusal in refused.items())
            if not refused:
                yield "The broker is not connected, or a queue is not consumed."
        # A service without a database has not imported it.
        pool_module = sys.modules.get("nameko_reliable.pool")
        if pool_module is not None and pool_module.ConnectionPool in extensions:
            yield from _database_problems(extensions[pool_module.ConnectionPool])

    def _measure_loop_lag(self) -> None:
        _freeze_loaded_objects()
        lag = LOOP_LAG.labels(self.container.service_name)
        while True:
            due_at = time.monotonic() + LAG_INTERVAL_SECONDS
            eventlet.sleep(LAG_INTERVAL_SECONDS)
            lag.observe(max(0, time.monotonic() - due_at))


def _freeze_loaded_objects() -> None:
    """Exclude the objects that exist at the start, mostly modules, from garbage collection.

    A collection of them stops the event loop for 80 ms, about once a second in a busy process.
    """
    # Only once: frozen objects that become cyclic garbage later are never freed.
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def _database_problems(pool: Any) -> Iterator[str]:
    from psycopg2.errors import DiskFull

    from nameko_reliable.pool import ReadOnly

    try:
        with eventlet.Timeout(READY_SECONDS, False):
            pool.check()
            return
    except ServiceUnavailable as error:
        if isinstance(error.__cause__, ReadOnly):
            yield "The database is read-only."
            return
        if isinstance(error.__cause__, DiskFull):
            yield "The database's disk is full."
            return
    yield "The database does not answer."
