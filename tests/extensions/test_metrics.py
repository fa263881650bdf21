"""extensions.metrics: what a process tells about itself, and to whom."""

from types import SimpleNamespace

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from extensions.database import Database
from extensions.metrics import Metrics
from extensions.rpc import rpc
from tests.extensions.proxy import UriProxy
from tests.infrastructure.waiting import wait_for


class Bakery:
    name = "bakery"

    db = Database()
    metrics = Metrics()

    @rpc
    def look(self):
        self.db.check()


@pytest.fixture
def watched(run_service):
    """`watched(Bakery)` starts it; `get("/livez")` asks it, `value("forage_…", outcome="ok")` is one of its samples."""

    def watched(service_class, **settings):
        container = run_service(service_class, **settings)
        [metrics] = [extension for extension in container.dependencies if isinstance(extension, Metrics)]

        def get(path, **options):
            return requests.get(f"http://127.0.0.1:{metrics.port}{path}", timeout=10, **options)

        def value(name, **labels):
            labels = {"service": container.service_name, **labels}
            for family in text_string_to_metric_families(get("/metrics").text):
                for sample in family.samples:
                    if sample.name == name and sample.labels.items() >= labels.items():
                        return sample.value
            return None

        return SimpleNamespace(container=container, port=metrics.port, get=get, value=value)

    return watched


def test_a_process_that_is_well_lives_and_is_ready(watched):
    bakery = watched(Bakery)

    assert bakery.get("/livez").status_code == 200
    assert bakery.get("/readyz").status_code == 200
    assert bakery.value("forage_service_info") == 1
    assert "process_resident_memory_bytes" in bakery.get("/metrics").text


def test_there_is_nothing_else(watched):
    bakery = watched(Bakery)

    assert bakery.get("/").status_code == 404
    assert requests.post(f"http://127.0.0.1:{bakery.port}/livez").status_code == 404
    assert bakery.get("/metrics", headers={"Accept": "application/openmetrics-text"}).status_code == 200
    assert requests.head(f"http://127.0.0.1:{bakery.port}/livez").text == ""


def test_without_the_broker_it_lives_but_is_not_ready_until_that_is_back(watched, proxy):
    bakery = watched(Bakery, AMQP_URI=proxy.uri)

    proxy.go_away()

    wait_for(lambda: bakery.get("/readyz").status_code == 503)
    assert bakery.get("/readyz").text == "The broker is not connected.\n"
    assert bakery.get("/livez").status_code == 200

    proxy.come_back()

    wait_for(lambda: bakery.get("/readyz").status_code == 200)


def test_without_the_database_it_lives_but_is_not_ready_until_that_is_back(watched, database_proxy):
    proxy = database_proxy("bakery")
    bakery = watched(Bakery, DB_URIS={"bakery": proxy.uri})

    proxy.go_away()

    answer = bakery.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "The database does not answer.\n")
    assert bakery.get("/livez").status_code == 200

    proxy.come_back()

    wait_for(lambda: bakery.get("/readyz").status_code == 200)


def test_a_database_that_hangs_is_not_waited_for_long(watched, database_proxy):
    proxy = database_proxy("bakery")
    bakery = watched(Bakery, DB_URIS={"bakery": proxy.uri})
    assert bakery.get("/readyz").status_code == 200

    proxy.hold()

    answer = bakery.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "The database does not answer.\n")
    assert answer.elapsed.total_seconds() < 4

    proxy.release()

    wait_for(lambda: bakery.get("/readyz").status_code == 200)


def test_while_the_broker_is_awaited_at_the_start_it_lives_already(processes, broker):
    away = UriProxy(broker.uri)
    away.go_away()

    server = processes.start("services.users", AMQP_URI=away.uri)

    port = wait_for(lambda: port_in(server.output()), seconds=30)
    assert requests.get(f"http://127.0.0.1:{port}/livez", timeout=10).status_code == 200
    assert requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 503


def port_in(output):
    """The port of the line that tells it; None as long as there is none."""
    _, _, rest = output.partition("serving metrics on port ")
    digits = rest.partition('"')[0]
    return int(digits) if digits.isdecimal() else None


def test_a_taken_port_ends_the_process_with_a_sentence(watched, run_service):
    port = watched(Bakery).port

    class Rival:
        name = "rival"

        metrics = Metrics()

    with pytest.raises(SystemExit, match=f"127.0.0.1, port {port} .*METRICS_PORT"):
        run_service(Rival, METRICS_PORT=str(port))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"METRICS_PORT": "many"}, "METRICS_PORT must be a whole number"),
        ({"METRICS_HOST": ""}, "METRICS_HOST is not set"),
        ({"METRICS_HOST": "203.0.113.1"}, "can't be served on 203.0.113.1"),
        ({"METRICS_HOST": "no.such.host.invalid"}, "can't be served on no.such.host.invalid"),
    ],
)
def test_a_bad_address_ends_the_process_with_a_sentence(run_service, settings, sentence):
    with pytest.raises(SystemExit, match=sentence):
        run_service(Bakery, **settings)
