"""nameko_reliable.telemetry.tracing: one trace through every process, and none without an endpoint."""

import json
import logging
from contextvars import copy_context

import eventlet
import pytest

from bakery import Base, Cake, CakeBaked, InboxEntry, OutboxEntry
from nameko_reliable.database import Database
from nameko_reliable.events import event_handler, handler_queue
from nameko_reliable.outbox import Outbox
from nameko_reliable.rpc import ClusterClient, rpc
from nameko_reliable.statements import Statement
from nameko_reliable.telemetry import tracing as kit
from nameko_reliable.telemetry.logs import LogContext, formatter
from nameko_reliable.telemetry.tracing import MAX_QUEUED, Operation, Tracer, WorkerSpans, traceparent
from nameko_reliable.testing.waiting import wait_for
from test_rpc import TooFewEggs

QUEUE = "evt-bakery-cake.baked--cafe.display"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"{CALLER}-01", f"{CALLER}-00"
SECRET = "ada@bakery.example"
COUNT = Statement("SELECT count(*) AS number FROM cakes WHERE name = %(cake)s::text")

logger = logging.getLogger("bakery.test")


class Bakery:
    name = "bakery"

    log_context = LogContext()
    tracing = WorkerSpans()
    db = Database(Base)
    outbox = Outbox(OutboxEntry, events=[CakeBaked])

    @rpc
    def bake(self, cake):
        logger.info("baking")
        with self.db.transaction() as session:
            session.add(Cake(name=cake))
            self.outbox.add(session, CakeBaked(cake=cake))

    @rpc
    def count(self, cake):
        return [row.number for row in self.db.execute(COUNT, cake=cake)]

    @rpc
    def refuse(self, wanted):
        with self.db.transaction():
            raise TooFewEggs(wanted, 2)

    @rpc
    def burn(self):
        raise ZeroDivisionError(SECRET)


class Kitchen:
    name = "kitchen"

    tracing = WorkerSpans()
    cluster = ClusterClient()

    @rpc
    def order(self, method, *arguments):
        return getattr(self.cluster.bakery, method)(*arguments)


class Cafe:
    name = "cafe"

    tracing = WorkerSpans()
    db = Database(Base)
    failures = []

    @event_handler(CakeBaked, pauses_seconds=(1,))
    def display(self, event):
        with self.db.transaction() as session:
            InboxEntry.take(session, event.event_id)
            if self.failures:
                raise self.failures.pop()


@pytest.fixture
def prompt_export(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")


@pytest.fixture
def lines():
    """The JSON lines of this test's logger, as objects."""
    kept = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(json.loads(handler.format(record)))
    handler.setFormatter(formatter("json", "INFO"))
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield kept
    logger.removeHandler(handler)


@pytest.fixture
def services(run_service, tables, calls, prompt_export, broker, config):
    """`services(Bakery, **settings)` runs them; `call(method, *args, traceparent=…)` is a caller's message."""
    with broker.channel() as channel:
        handler_queue(CakeBaked, "cafe", "display", config)(channel).declare()

    def call(method, *arguments, traceparent=None):
        before = len(calls.answers())
        calls.send(method, *arguments, headers={"traceparent": traceparent} if traceparent else {})
        return wait_for(lambda: calls.answers()[before:])[0]

    def services(*classes, **settings):
        call.containers = [run_service(service_class, **settings) for service_class in classes]
        return call

    call.bakery = tables("bakery")
    return services


def test_a_trace_covers_calls_statements_the_outbox_and_the_handler(services, collector):
    call = services(Bakery, Kitchen, Cafe, **collector.settings)

    call("kitchen.order", "bake", "Torte", traceparent=SAMPLED)

    [kitchen] = wait_for(lambda: collector.find("kitchen/order"))
    assert (f"00-{kitchen.trace_id}-{kitchen.parent_id}", kitchen.kind) == (CALLER, "server")
    [client] = wait_for(lambda: collector.find("bakery/bake", below=kitchen))
    assert (client.service, client.kind) == ("kitchen", "client")
    [server] = wait_for(lambda: collector.find("bakery/bake", below=client))
    assert (server.service, server.kind) == ("bakery", "server")
    [transaction] = wait_for(lambda: collector.find("transaction", below=server))
    [statement] = wait_for(lambda: collector.find("INSERT cakes", below=transaction))
    assert "%(name)s" in statement.attributes["db.query.text"]
    [creation] = wait_for(lambda: collector.find("create bakery.events:cake.baked", below=transaction))
    [sending] = wait_for(lambda: collector.find("send bakery.events:cake.baked", below=creation))
    [handling] = wait_for(lambda: collector.find("process bakery.events:cake.baked", below=creation))
    assert (creation.kind, sending.kind, handling.kind) == ("producer", "producer", "consumer")
    assert handling.attributes["messaging.destination.name"] == f"bakery.events:cake.baked:{QUEUE}"
    [its_transaction] = wait_for(lambda: collector.find("transaction", below=handling))
    wait_for(lambda: collector.find("INSERT inbox", below=its_transaction))
    assert b"Torte" not in b"".join(collector.bodies)


def test_the_span_of_a_prepared_statement_has_the_statement_itself(services, collector):
    call = services(Bakery, **collector.settings)

    for _ in range(2):
        call("bakery.count", SECRET, traceparent=SAMPLED)

    [first, second] = wait_for(lambda: len(found := collector.find("SELECT cakes")) == 2 and found)
    assert first.attributes["db.query.text"] == second.attributes["db.query.text"] == COUNT.plain
    # Each connection prepares it, and the relay may have held the one of the first call.
    assert len(collector.find("PREPARE cakes")) in (1, 2)
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_a_retried_message_stays_in_its_trace(services, collector, monkeypatch):
    monkeypatch.setattr(Cafe, "failures", [ZeroDivisionError(SECRET)])
    call = services(Bakery, Cafe, **collector.settings)

    call("bakery.bake", "Torte", traceparent=SAMPLED)

    attempts = wait_for(lambda: len(collector.find("process bakery.events:cake.baked")) == 2 and collector.spans)
    first, second = (span for span in attempts if span.name == "process bakery.events:cake.baked")
    assert (first.trace_id, first.parent_id) == (second.trace_id, second.parent_id)
    assert (first.is_error, second.is_error) == (True, False)
    assert first.attributes["error.type"] == "builtins.ZeroDivisionError"
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_a_trace_that_the_caller_does_not_sample_makes_no_spans_and_is_passed_on(services, collector, broker, lines):
    call = services(Bakery, Kitchen, **collector.settings)

    call("kitchen.order", "bake", "Torte", traceparent=UNSAMPLED)

    [message] = wait_for(lambda: broker.peek(QUEUE))
    assert message.headers["traceparent"] == UNSAMPLED
    [line] = lines
    assert (line["trace_id"], "span_id" in line) == (UNSAMPLED[3:35], False)
    for container in call.containers:
        container.stop()
    assert collector.spans == []


def test_with_a_ratio_of_0_no_trace_is_sampled(services, collector, broker):
    call = services(Bakery, **{**collector.settings, "OTEL_TRACES_SAMPLER_ARG": 0.0})

    call("bakery.bake", "Torte")

    [message] = wait_for(lambda: broker.peek(QUEUE))
    assert message.headers["traceparent"].endswith("-00")
    call.containers[0].stop()
    assert collector.spans == []


@pytest.mark.parametrize("traceparent", ["nonsense", f"{CALLER}-zz", f"00-{'0' * 32}-{'1' * 16}-01", 7])
def test_a_malformed_traceparent_counts_as_missing(services, collector, traceparent):
    call = services(Bakery, **collector.settings)

    assert call("bakery.bake", "Torte", traceparent=traceparent)["error"] is None

    [server] = wait_for(lambda: collector.find("bakery/bake"))
    assert server.parent_id is None


def test_a_log_line_in_a_span_has_the_ids_of_span_and_trace(services, collector, lines):
    call = services(Bakery, **collector.settings)

    call("bakery.bake", "Torte")

    [server] = wait_for(lambda: collector.find("bakery/bake"))
    [line] = lines
    assert (line["trace_id"], line["span_id"]) == (server.trace_id, server.span_id)
    assert line["request_id"]


def test_a_span_is_an_error_after_a_bug_but_not_after_a_refusal(services, collector):
    call = services(Bakery, Kitchen, **collector.settings)

    call("kitchen.order", "refuse", 3)
    call("kitchen.order", "burn")

    refused = wait_for(lambda: len(collector.find("bakery/refuse")) == 2 and collector.find("bakery/refuse"))
    burnt = wait_for(lambda: len(collector.find("bakery/burn")) == 2 and collector.find("bakery/burn"))
    assert {span.attributes["rpc.response.status_code"] for span in refused} == {"TooFewEggs"}
    [transaction] = wait_for(lambda: collector.find("transaction"))
    assert not any(span.is_error for span in [*refused, transaction])
    assert all(span.is_error for span in burnt)
    server = next(span for span in burnt if span.kind == "server")
    assert server.attributes["error.type"] == "builtins.ZeroDivisionError"
    # Texts of errors may quote personal data.
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_a_stop_sends_the_last_spans(services, collector, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    call = services(Bakery, **collector.settings)
    call("bakery.bake", "Torte")
    assert collector.spans == []

    call.containers[0].stop()

    assert collector.find("bakery/bake")


def test_the_queue_of_spans_has_a_maximum_size(services, closed_port, monkeypatch):
    monkeypatch.setattr(kit, "FLUSH_SECONDS", 0.1)
    [bakery] = services(
        Bakery, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{closed_port}", OTEL_TRACES_SAMPLER_ARG=1.0
    ).containers
    tracer = bakery.shared_extensions[Tracer]

    for _ in range(5000):
        tracer.entry_span(Operation("baking")).end()

    assert len(tracer._processor._batch_processor._queue) == MAX_QUEUED


def test_dropped_spans_and_failed_exports_are_each_logged_once_a_minute(services, collector, caplog, monkeypatch):
    services(Bakery, **collector.settings)
    for limit in (kit._limit_export_warnings, kit._limit_drop_warnings):
        monkeypatch.setattr(limit, "_next_at", 0.0)

    for number in range(2):
        for name in ("exporter.otlp.proto.http.trace_exporter", "sdk._shared_internal"):
            logging.getLogger(f"opentelemetry.{name}").warning("%d of %s", number, name)

    assert [record.args[0] for record in caplog.records if record.name.startswith("opentelemetry")] == [0, 0]


def test_without_an_endpoint_messages_and_log_lines_have_no_trace(services, broker, lines):
    call = services(Bakery, OTEL_EXPORTER_OTLP_ENDPOINT="")

    call("bakery.bake", "Torte", traceparent=SAMPLED)

    [message] = wait_for(lambda: broker.peek(QUEUE))
    assert "traceparent" not in message.headers
    [line] = lines
    assert not line.keys() & {"trace_id", "span_id"}


def test_a_new_greenlet_is_in_no_trace_unless_it_gets_a_copy_of_the_context(services, collector):
    [bakery] = services(Bakery, **collector.settings).containers
    tracer = bakery.shared_extensions[Tracer]

    def nap():
        eventlet.sleep(0.01)
        return traceparent()

    with tracer.entry_span(Operation("outer")):
        own = traceparent()
        alone, given = eventlet.spawn(nap), eventlet.spawn(copy_context().run, nap)
        assert (alone.wait(), given.wait(), traceparent()) == (None, own, own)
    assert traceparent() is None
