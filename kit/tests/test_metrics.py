"""nameko_reliable.telemetry.metrics and gauges: the metrics and the health of a process."""

import gc
from datetime import UTC, datetime, timedelta

import pytest
import requests
from nameko.exceptions import RemoteError
from prometheus_client import Gauge
from sqlalchemy import func, select, text

from bakery import Base, Cake, CakeBaked, OutboxEntry
from nameko_reliable.database import Database
from nameko_reliable.events import event_handler
from nameko_reliable.outbox import Outbox
from nameko_reliable.rpc import rpc
from nameko_reliable.telemetry import gauges
from nameko_reliable.telemetry.gauges import QueryGauge
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.waiting import wait_for

CAKES = Gauge("test_cakes", "Cakes by their name.", ["service", "cake"])
ODD_CAKES = Gauge("test_odd_cakes", "A query without a number.", ["service"])
SLOW_CAKES = Gauge("test_slow_cakes", "Cakes, counted slowly.", ["service"])


class Bakery:
    name = "bakery"

    db = Database(Base)
    metrics = Metrics()
    outbox = Outbox(OutboxEntry, events=[CakeBaked])
    cakes = QueryGauge(CAKES, select(Cake.name, func.count()).group_by(Cake.name))

    @rpc
    def bake(self, cake):
        with self.db.transaction() as session:
            session.add(Cake(name=cake))
            self.outbox.add(session, CakeBaked(cake=cake))

    @rpc
    def look(self):
        self.db.check()

    @rpc
    def burn(self):
        raise ZeroDivisionError("burnt")

    @rpc
    def weigh(self):
        return object()


@pytest.fixture
def watched(run_service):
    """`watched(Bakery)` starts the service."""
    return lambda service_class, **settings: Watched(run_service(service_class, **settings))


@pytest.fixture
def bakery(tables):
    """The bakery's database."""
    return tables("bakery")


def test_the_garbage_collector_skips_objects_loaded_before_the_start(watched, bakery):
    gc.unfreeze()
    loaded = len(gc.get_objects())

    watched(Bakery)

    wait_for(lambda: gc.get_freeze_count() >= loaded / 2)
    assert len(gc.get_objects()) < loaded / 2


def test_a_healthy_process_is_live_and_ready(watched):
    bakery = watched(Bakery)

    assert bakery.get("/livez").status_code == 200
    assert bakery.get("/readyz").status_code == 200
    assert bakery.value("nameko_service_info") == 1
    assert "process_resident_memory_bytes" in bakery.get("/metrics").text


def test_other_pages_and_methods_are_not_found(watched):
    bakery = watched(Bakery)

    assert bakery.get("/").status_code == 404
    assert requests.post(f"http://127.0.0.1:{bakery.port}/livez").status_code == 404
    assert bakery.get("/metrics", headers={"Accept": "application/openmetrics-text"}).status_code == 200
    assert requests.head(f"http://127.0.0.1:{bakery.port}/livez").text == ""


def test_a_service_is_not_ready_while_a_queue_is_refused(watched, broker, monkeypatch):
    monkeypatch.setattr("nameko_reliable.amqp.consumers.DECLARE_SECONDS", 0.2)
    broker.declare("rpc-bakery", durable=True)

    bakery = watched(Bakery)

    wait_for(lambda: bakery.get("/readyz").status_code == 503)
    assert bakery.get("/readyz").text.startswith(
        "The broker refuses rpc-bakery: PRECONDITION_FAILED - inequivalent arg"
    )
    with broker.channel() as channel:
        channel.queue_delete("rpc-bakery")
    wait_for(lambda: bakery.get("/readyz").status_code == 200)


def test_without_the_broker_a_process_is_live_but_not_ready(watched, proxy):
    bakery = watched(Bakery, AMQP_URI=proxy.uri)

    proxy.go_away()

    wait_for(lambda: bakery.get("/readyz").status_code == 503)
    assert bakery.get("/readyz").text == "The broker is not connected, or a queue is not consumed.\n"
    assert bakery.get("/livez").status_code == 200

    proxy.come_back()

    wait_for(lambda: bakery.get("/readyz").status_code == 200)


def test_without_the_database_a_process_is_live_but_not_ready(watched, database_proxy):
    proxy = database_proxy("bakery")
    bakery = watched(Bakery, DB_URIS={"bakery": proxy.uri})

    proxy.go_away()

    answer = bakery.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "The database does not answer.\n")
    assert bakery.get("/livez").status_code == 200

    proxy.come_back()

    wait_for(lambda: bakery.get("/readyz").status_code == 200)


def test_readiness_does_not_wait_long_for_a_hanging_database(watched, database_proxy):
    proxy = database_proxy("bakery")
    bakery = watched(Bakery, DB_URIS={"bakery": proxy.uri})
    assert bakery.get("/readyz").status_code == 200

    proxy.hold()

    answer = bakery.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "The database does not answer.\n")

    proxy.release()

    wait_for(lambda: bakery.get("/readyz").status_code == 200)


def test_a_taken_port_ends_the_process_with_a_sentence(watched, run_service):
    port = watched(Bakery).port

    class Rival:
        name = "rival"

        metrics = Metrics()

    with pytest.raises(SystemExit, match=f"127.0.0.1, port {port} .*METRICS_PORT"):
        run_service(Rival, METRICS_PORT=port)


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_ends_the_process_with_a_sentence(run_service, host):
    with pytest.raises(SystemExit, match=f"can't be served on {host}"):
        run_service(Bakery, METRICS_HOST=host)


def test_caller_and_service_count_calls_by_method_and_outcome(watched, bakery, cluster):
    server = watched(Bakery)

    cluster.bakery.look()
    cluster.bakery.look()
    with pytest.raises(Exception, match="burnt"):
        cluster.bakery.burn()
    with pytest.raises(RemoteError, match="not JSON serializable"):
        cluster.bakery.weigh()

    for end, labels in (("server", {}), ("client", {"service": "caller", "target": "bakery"})):
        calls = f"nameko_rpc_{end}_duration_seconds_count"
        assert server.count(calls, method="look", outcome="ok", **labels) == 2
        assert server.count(calls, method="burn", outcome="error", **labels) == 1
        assert server.count(calls, method="weigh", outcome="error", **labels) == 1
    assert 0 < server.count("nameko_rpc_server_duration_seconds_sum", method="look") < 5


def test_a_caller_counts_calls_to_an_unavailable_service(watched, cluster):
    server = watched(Bakery)

    with pytest.raises(Exception, match="nowhere"):
        cluster.nowhere.look()

    calls = "nameko_rpc_client_duration_seconds_count"
    assert server.count(calls, service="caller", target="nowhere", outcome="unavailable") == 1


def test_made_up_names_of_methods_do_not_become_labels(watched, bakery, calls):
    server = watched(Bakery)

    calls.send("bakery.made_up")
    calls.send("bakery.look", kwargs={"made_up": 1})
    calls.send("bakery.look", body=b"made up")

    counted = "nameko_rpc_server_duration_seconds_count"
    wait_for(lambda: server.count(counted, method="unknown", outcome="error") == 3)
    assert "made_up" not in server.get("/metrics").text


@pytest.fixture
def press(watched, monkeypatch):
    """A service with a handler that succeeds and one that always fails."""
    monkeypatch.setattr(gauges, "DEPTHS_INTERVAL_SECONDS", 0)

    class Press:
        name = "press"

        metrics = Metrics()

        @event_handler(CakeBaked)
        def praise(self, event):
            pass

        @event_handler(CakeBaked, pauses_seconds=(1,))
        def criticize(self, event):
            raise ZeroDivisionError("no taste")

    return watched(Press)


def test_events_are_counted_by_handler_and_outcome(press, broker):
    event = CakeBaked(cake="Torte", timestamp=datetime.now(UTC) - timedelta(seconds=90))

    broker.publish_event(event)

    attempts = "nameko_event_handler_duration_seconds_count"
    wait_for(lambda: press.count(attempts, event="cake.baked", handler="praise", outcome="handled") == 1)
    wait_for(lambda: press.count(attempts, event="cake.baked", handler="criticize", outcome="retried") == 1)
    wait_for(lambda: press.count(attempts, event="cake.baked", handler="criticize", outcome="parked") == 1)
    assert 90 <= press.count("nameko_event_lag_seconds_sum", event="cake.baked", handler="praise") < 120
    assert press.count("nameko_event_lag_seconds_count", handler="criticize") == 0


def test_waiting_and_parked_messages_are_reported(press, broker):
    broker.publish(b"no event", exchange="bakery.events", routing_key="cake.baked")

    wait_for(lambda: press.value("nameko_parked_messages") == 2)
    assert press.value("nameko_queue_messages", queue="evt-bakery-cake.baked--press.praise") == 0
    assert press.value("nameko_inquiry_success", inquiry="queues") == 1


def test_the_outbox_reports_its_size_and_its_oldest_age(watched, bakery, cluster):
    server = watched(Bakery)
    cluster.bakery.bake("Torte")
    wait_for(lambda: server.count("nameko_outbox_published_total", event="cake.baked", outcome="confirmed") == 1)
    # It is counted before its row is deleted.
    wait_for(lambda: server.value("nameko_outbox_messages") == 0)
    assert server.value("nameko_outbox_oldest_age_seconds") == 0

    with bakery.engine.begin() as connection:
        for seconds in (90, 10):
            waiting = {"event_id": CakeBaked(cake="").event_id, "event_name": "cake.baked", "key": "1", "payload": {}}
            # not_before: the relay must not publish it during the test.
            at = {
                "created_at": func.now() - timedelta(seconds=seconds),
                "not_before": func.now() + timedelta(seconds=90),
            }
            connection.execute(OutboxEntry.__table__.insert().values(**waiting, **at))

    assert server.value("nameko_outbox_messages") == 2
    assert 90 <= server.value("nameko_outbox_oldest_age_seconds") < 120


def test_a_query_gauge_follows_the_rows_of_its_query(watched, bakery, cluster):
    server = watched(Bakery)
    cluster.bakery.bake("Torte")
    assert server.value("test_cakes", cake="Torte") == 1

    bakery.execute(text("DELETE FROM cakes"))

    assert server.value("test_cakes", cake="Torte") is None


@pytest.mark.parametrize("columns", ["NULL", "'Torte', 1"])
def test_a_query_without_a_numeric_value_does_not_affect_other_metrics(watched, bakery, columns):
    class Archive:
        name = "bakery"

        metrics = Metrics()
        cakes = QueryGauge(CAKES, select(Cake.name, func.count()).group_by(Cake.name))
        odd = QueryGauge(ODD_CAKES, text(f"SELECT {columns}"))

    bakery.execute(Cake.__table__.insert().values(name="Torte"))
    server = watched(Archive)

    assert server.value("nameko_inquiry_success", inquiry="test_odd_cakes") == 0
    assert server.value("test_odd_cakes") is None
    assert server.value("test_cakes", cake="Torte") == 1


def test_a_slow_query_shows_once_it_is_done_and_is_not_repeated_before_its_interval(watched, bakery, monkeypatch):
    monkeypatch.setattr(gauges, "SCRAPE_SECONDS", 0.1)
    slowly = text("SELECT (SELECT count(*) FROM cakes) FROM pg_advisory_xact_lock(1)")

    class Archive:
        name = "bakery"

        metrics = Metrics()
        cakes = QueryGauge(SLOW_CAKES, slowly, every_seconds=3600)

    with bakery.engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(1)"))
        server = watched(Archive)
        assert server.value("test_slow_cakes") is None
        connection.execute(text("SELECT pg_advisory_unlock(1)"))

    wait_for(lambda: server.value("test_slow_cakes") == 0)

    bakery.execute(Cake.__table__.insert().values(name="Torte"))
    assert server.value("test_slow_cakes") == 0


def test_without_the_database_other_metrics_are_reported_and_the_inquiry_as_failed(watched, bakery, database_proxy):
    proxy = database_proxy("bakery")
    server = watched(Bakery, DB_URIS={"bakery": proxy.uri})
    assert server.value("nameko_outbox_messages") == 0

    proxy.go_away()

    assert server.value("nameko_inquiry_success", inquiry="outbox") == 0
    assert server.value("nameko_outbox_messages") is None
    assert server.value("nameko_broker_connected") == 1

    proxy.come_back()

    wait_for(lambda: server.value("nameko_outbox_messages") == 0)
    assert server.value("nameko_inquiry_success", inquiry="outbox") == 1


def test_a_hanging_database_does_not_block_the_scrape(watched, bakery, database_proxy):
    proxy = database_proxy("bakery")
    server = watched(Bakery, DB_URIS={"bakery": proxy.uri})

    proxy.hold()
    answer = server.get("/metrics")

    assert 'nameko_inquiry_success{inquiry="outbox",service="bakery"} 0.0' in answer.text
    proxy.release()
    wait_for(lambda: server.value("nameko_outbox_messages") == 0)


def test_the_pool_the_workers_and_the_loop_are_reported(watched, bakery, cluster):
    server = watched(Bakery)
    cluster.bakery.look()

    assert server.value("nameko_db_pool_size") == server.value("nameko_workers") + 2
    # The relay takes a connection now and then.
    wait_for(lambda: server.value("nameko_db_pool_in_use") == 0)
    assert server.count("nameko_db_pool_wait_seconds_count") >= 1
    wait_for(lambda: server.value("nameko_workers_busy") == 0)
    wait_for(lambda: server.count("nameko_event_loop_lag_seconds_count") > 0)


def test_without_the_broker_its_gauge_is_0(watched, proxy):
    server = watched(Bakery, AMQP_URI=proxy.uri)
    assert server.value("nameko_broker_connected") == 1

    proxy.go_away()

    wait_for(lambda: server.value("nameko_broker_connected") == 0)
