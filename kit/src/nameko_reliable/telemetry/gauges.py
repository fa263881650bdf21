"""Gauges whose values are read from the database or the broker when /metrics is scraped.

    OLDEST_CAKE = Gauge("oldest_cake_age_seconds", "…", ["service"])

    class Bakery:
        name = "bakery"
        metrics = Metrics(prefix="bakery")
        oldest_cake = QueryGauge(OLDEST_CAKE, text("SELECT …"))

Replicas share a database and report the same value: aggregate with max(), not sum().
While the database or the broker does not answer, the gauge has no value, and `inquiry_success` is 0.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import eventlet
from amqp.exceptions import NotFound
from nameko.extensions import DependencyProvider, SharedExtension
from prometheus_client import Gauge

from nameko_reliable.amqp.broker import CONNECTION_ERRORS, BrokerUnavailable, answer_timeout, connect, end
from nameko_reliable.errors import ServiceUnavailable
from nameko_reliable.settings import amqp_address
from nameko_reliable.telemetry.registry import KIT

if TYPE_CHECKING:
    from sqlalchemy import Executable

logger = logging.getLogger(__name__)

# A gauge and the values of its labels, without the service.
Series: TypeAlias = tuple[Any, ...]
ReadValues: TypeAlias = Callable[[], Mapping[Series, float]]

ANSWER_SECONDS = 1.5
# More than ANSWER_SECONDS, so that the same scrape reports that an answer is missing.
SCRAPE_SECONDS = 2
# For inquiries with an interval, which may take longer.
SLOW_ANSWER_SECONDS = 25
# Each reading opens a connection, since on the lasting ones only their reader greenlets may read.
DEPTHS_INTERVAL_SECONDS = 30

INQUIRY_SUCCESS = Gauge(
    "inquiry_success",
    "1 if the database or the broker answered the last inquiry for a gauge, else 0.",
    ["service", "inquiry"],
    registry=KIT,
)


QUEUE_MESSAGES = Gauge(
    "queue_messages",
    "Messages that wait in a queue of the service, without those that are being handled.",
    ["service", "queue"],
    registry=KIT,
)


class Inquiries(SharedExtension):
    """The reads of the database and the broker that a scrape starts."""

    def __init__(self) -> None:
        self._inquiries: list[_Inquiry] = []

    def add(self, name: str, read: ReadValues, every_seconds: float = 0) -> None:
        """Call it in an extension's `setup`.

        read: returns {(gauge, *labels without the service): value}. every_seconds: 0 reads at each scrape.
        """
        self._inquiries.append(_Inquiry(self.container, name, read, every_seconds))

    def refresh(self) -> None:
        """Run the inquiries that are due, concurrently. A later scrape shows those that need over SCRAPE_SECONDS."""
        threads = [inquiry.start() for inquiry in self._inquiries if inquiry.is_due()]
        with eventlet.Timeout(SCRAPE_SECONDS, False):
            for thread in threads:
                thread.wait()


class _Inquiry:
    def __init__(self, container: Any, name: str, read: ReadValues, every_seconds: float) -> None:
        self._container, self._name, self._read, self._every_seconds = container, name, read, every_seconds
        self._timeout_seconds = SLOW_ANSWER_SECONDS if every_seconds else ANSWER_SECONDS
        self._due_at = 0.0
        self._thread: Any = None
        self._series: set[Series] = set()

    def is_due(self) -> bool:
        return self._thread is not None or time.monotonic() >= self._due_at

    def start(self) -> Any:
        """The greenlet that reads. Concurrent scrapes share it."""
        if self._thread is None:
            self._thread = self._container.spawn_managed_thread(self._run, identifier=self._name)
        return self._thread

    def _run(self) -> None:
        success = 0
        try:
            # A Timeout is not an Exception, so SQLAlchemy closes the connection that it interrupts.
            with eventlet.Timeout(self._timeout_seconds):
                values = self._read()
            self._update(values)
            success = 1
        except (Exception, eventlet.Timeout) as error:
            # No error of one inquiry may fail the scrape.
            self._update({})
            is_outage = isinstance(error, (ServiceUnavailable, BrokerUnavailable, eventlet.Timeout))
            logger.warning("%s could not be read: %r", self._name, error, exc_info=not is_outage)
        finally:
            self._thread, self._due_at = None, time.monotonic() + self._every_seconds
        INQUIRY_SUCCESS.labels(self._container.service_name, self._name).set(success)

    def _update(self, values: Mapping[Series, float]) -> None:
        for gauge, *labels in self._series - values.keys():
            gauge.remove(self._container.service_name, *labels)
        self._series &= values.keys()
        for (gauge, *labels), value in values.items():
            # A value that is no number raises here, before its series exists.
            number = float(value)
            gauge.labels(self._container.service_name, *labels).set(number)
            self._series.add((gauge, *labels))


class QueryGauge(DependencyProvider):
    """A gauge with the result of a query of the service's database.

    gauge: its first label is `service`. statement: each row has the values of the other labels, then the gauge's value.
    every_seconds: the interval of a query that takes long. Each replica runs it.
    """

    inquiries = Inquiries()

    def __init__(self, gauge: Gauge, statement: "Executable", every_seconds: float = 0) -> None:
        # Imported here: a service without a database, which also has RPC and queues, loads no SQLAlchemy.
        from nameko_reliable.pool import ConnectionPool

        self.pool = ConnectionPool()
        self.gauge, self.statement, self.every_seconds = gauge, statement, every_seconds

    def setup(self) -> None:
        [metric] = self.gauge.describe()
        self.inquiries.add(metric.name, self._read, self.every_seconds)

    def _read(self) -> dict[Series, float]:
        with self.pool.session() as session:
            return {(self.gauge, *labels): value for *labels, value in session.execute(self.statement)}


class QueueDepths(SharedExtension):
    """Gauges of how many messages wait in the service's queues."""

    inquiries = Inquiries()

    def __init__(self) -> None:
        self._watched: dict[str, Series] = {}

    def setup(self) -> None:
        self._address = amqp_address(self.container.config)
        self.inquiries.add("queues", self._read, DEPTHS_INTERVAL_SECONDS)

    def watch(self, queue_name: str, gauge: Gauge, *labels: str) -> None:
        """Call it in an extension's `setup`. labels: without the service."""
        self._watched[queue_name] = gauge, *labels

    def _read(self) -> dict[Series, float]:
        connection = None
        try:
            connection = connect(self._address)
            with answer_timeout(ANSWER_SECONDS):
                depths = {}
                for queue_name, key in self._watched.items():
                    try:
                        with connection.channel() as channel:
                            depths[key] = channel.queue_declare(queue_name, passive=True).message_count
                    except NotFound:
                        pass  # Not declared yet, or auto-deleted with its last consumer.
                connection.close()
                return depths
        except CONNECTION_ERRORS as error:
            raise BrokerUnavailable(str(error)) from error
        finally:
            if connection is not None:
                end(connection)
