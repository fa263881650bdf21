"""A real Prometheus scrapes the whole shop."""

import re

import pytest
import requests
import yaml

from contracts.types import SERVICES
from dev.settings import ROOT
from nameko_reliable.testing.servers import Server, free_port
from nameko_reliable.testing.waiting import wait_for
from tests.deploy.test_alerts import ALERTS
from tests.deploy.test_dashboards import expressions

pytestmark = pytest.mark.server

PROCESSES = {*SERVICES, "gateway"}
# Panels without data while nothing fails. Some are also empty because orders, the chosen service, handles no events.
EMPTY_WITHOUT_ERRORS = {
    "overview: Errors by route",
    "overview: Refusals by route",
    "overview: Restarts",
    "service: Refused and failed, by method",
    "service: Failed, by target",
    "service: Attempts by handler and outcome",
    "service: Duration, 95th percentile",
    "service: Messages that wait",
    "service: Restarts",
    "messaging: Retried, postponed, parked, failed",
    "messaging: Restarts",
}


class Prometheus:
    def __init__(self, folder, targets):
        self.url = f"http://127.0.0.1:{free_port()}"
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ROOT / "deploy" / "prometheus" / "alerts.yml")],
            "scrape_configs": [{"job_name": "forage", "static_configs": [{"targets": targets}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        self.server = Server("prometheus", folder, command, is_ready=self._is_ready)

    def ask(self, query):
        """[(labels, value)] of a PromQL query."""
        answer = requests.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=10).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]

    def value(self, query):
        """The value of a query with one result, else None."""
        values = [value for _, value in self.ask(query)]
        return values[0] if len(values) == 1 else None

    def _is_ready(self):
        try:
            return requests.get(f"{self.url}/-/ready", timeout=5).ok
        except requests.RequestException:
            return False


@pytest.fixture
def metrics_addresses(shop):
    """The address of each process's metrics, from its log."""

    def ports():
        found = dict(re.findall(r"^(\w+) +\| .*serving metrics on port (\d+)", shop.output(), re.MULTILINE))
        return found if found.keys() == PROCESSES else None

    return [f"127.0.0.1:{port}" for port in wait_for(ports).values()]


@pytest.fixture
def prometheus(metrics_addresses, tmp_path):
    prometheus = Prometheus(tmp_path, metrics_addresses)
    prometheus.server.start()
    prometheus.server.wait_until_ready()
    yield prometheus
    prometheus.server.stop()


def test_prometheus_sees_each_step_of_an_order_and_no_alert_fires(prometheus, customer, product):
    wait_for(lambda: {labels["service"] for labels, _ in prometheus.ask("forage_service_info")} == PROCESSES)
    counted = {
        'forage_http_request_duration_seconds_count{route="/orders", method="POST", status="201"}': 1,
        'forage_rpc_client_duration_seconds_count{service="orders", target="products", method="reserve_stock"}': 1,
        'forage_rpc_server_duration_seconds_count{service="orders", method="create_order", outcome="ok"}': 1,
        'forage_outbox_published_total{service="orders", event="order.created", outcome="confirmed"}': 1,
        'forage_event_handler_duration_seconds_count{handler="confirm_order", outcome="handled"}': 1,
        'forage_event_lag_seconds_count{service="notifications", event="order.created"}': 1,
        'forage_mail_duration_seconds_count{outcome="sent"}': 1,
    }
    before = {query: prometheus.value(query) or 0 for query in counted}

    with customer.listen():
        assert customer.order(product).status_code == 201
        wait_for(lambda: customer.mails("order.created"))
        for query, more in counted.items():
            wait_for(lambda query=query, more=more: (prometheus.value(query) or 0) >= before[query] + more)
        wait_for(lambda: prometheus.value('forage_websockets{state="authenticated"}') == 1)

    wait_for(lambda: prometheus.value('forage_outbox_messages{service="orders"}') == 0)
    assert prometheus.value("forage_stock_mismatches") == 0
    assert prometheus.value('forage_mails{status="failed"}') == 0
    assert prometheus.ask('ALERTS{alertstate="firing"}') == []
    panels = {expression: panel for expression, panel in expressions().items() if panel not in ALERTS}

    def all_show_something():
        assert {panel for expression, panel in panels.items() if not prometheus.ask(expression)} <= EMPTY_WITHOUT_ERRORS
        return True

    # A rate needs two scrapes.
    wait_for(all_show_something)


def test_the_env_file_gives_a_new_replica_a_free_port_for_its_metrics(shop):
    assert shop.settings["METRICS_PORT"] == "0"
