import time

import eventlet
import pytest
import requests

from contracts.types import SERVICES
from gateway import Gateway
from gateway.routes import health as health_module
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for
from services.users import Users

from .conftest import problem, provider

SLOW_SECONDS = 20


def test_a_healthy_shop_reports_healthy(anonymous):
    answer = anonymous.get("/health")

    health = answer.json()
    assert answer.status_code == 200
    assert health.keys() == {"status", "timestamp", "gateway", "services", "warnings"}
    assert (health["status"], health["gateway"], health["warnings"]) == ("healthy", {"status": "up"}, [])
    assert health["services"].keys() == set(SERVICES)
    for service in health["services"].values():
        assert service["status"] == "up"
        assert service["response_time_ms"] > 0


def test_probes_answer_200_in_a_healthy_shop(anonymous):
    assert anonymous.get("/livez").status_code == 200
    assert anonymous.get("/readyz").status_code == 200


def test_metrics_are_not_public(shop, anonymous):
    assert anonymous.get("/metrics").status_code == 404
    assert requests.get(f"http://127.0.0.1:{provider(shop.gateway, 'metrics').port}/metrics").status_code == 200


@pytest.fixture
def url(config, run_service):
    """The URL of a gateway without any service."""
    run_service(Gateway)
    return f"http://127.0.0.1:{config['GATEWAY_PORT']}"


def test_with_some_services_down_the_shop_is_degraded_but_ready(url, run_service, database):
    run_service(Users, DB_URIS={"users": database("users")})

    health = wait_for(
        lambda: health if (health := requests.get(f"{url}/health").json())["status"] == "degraded" else None
    )

    assert {name for name, service in health["services"].items() if service["status"] == "up"} == {"users"}
    assert requests.get(f"{url}/readyz").status_code == 200


def test_with_all_services_down_the_gateway_lives_but_is_not_ready(url):
    health = requests.get(f"{url}/health")
    ready = requests.get(f"{url}/readyz")

    assert (health.status_code, health.json()["status"]) == (200, "unhealthy")
    assert requests.get(f"{url}/livez").status_code == 200
    assert ready.status_code == 503
    assert problem(ready)["type"] == "not-ready"
    assert "Retry-After" in ready.headers


def test_a_call_to_a_stopped_service_is_503_at_once(url):
    answer = requests.get(f"{url}/products")

    # A call that waits until its deadline gets 504.
    assert answer.status_code == 503
    assert problem(answer)["type"] == "service-unavailable"
    assert answer.headers["Retry-After"]


class SlowCatalogue:
    """A service named products that answers slowly."""

    name = "products"

    @rpc
    def list_categories(self):
        time.sleep(SLOW_SECONDS)

    @rpc
    def health(self):
        time.sleep(SLOW_SECONDS)

    @rpc
    def get_product(self, product_id, include_inactive):
        raise KeyError("secret detail")

    @rpc
    def list_products(self):
        pass


class CountingCatalogue:
    """A service named products that counts its health checks."""

    name = "products"
    checks = 0

    @rpc
    def health(self):
        CountingCatalogue.checks += 1


def test_concurrent_health_requests_share_one_check(url, run_service, monkeypatch):
    monkeypatch.setattr(health_module, "SHARED_SECONDS", 3600)
    run_service(CountingCatalogue)

    requesters = [eventlet.spawn(requests.get, f"{url}/health") for _ in range(20)]

    assert {requester.wait().json()["services"]["products"]["status"] for requester in requesters} == {"up"}
    assert CountingCatalogue.checks == 1


@pytest.fixture
def slow_catalogue(url, run_service):
    run_service(SlowCatalogue)
    wait_for(lambda: requests.get(f"{url}/products/1").status_code == 500)
    return url


def test_a_slow_service_is_504_after_five_seconds(slow_catalogue):
    started_at = time.monotonic()

    answer = requests.get(f"{slow_catalogue}/products/categories")

    assert answer.status_code == 504
    assert problem(answer)["type"] == "timeout"
    assert 4.5 < time.monotonic() - started_at < SLOW_SECONDS


def test_a_slow_service_delays_the_health_check_by_two_seconds_at_most(slow_catalogue):
    answer = requests.get(f"{slow_catalogue}/health")

    assert answer.json()["services"]["products"]["status"] == "down"
    # Other calls may take five seconds.
    assert answer.elapsed.total_seconds() < 5


def test_an_unexpected_error_of_a_service_is_500_without_its_details(slow_catalogue, caplog):
    answer = requests.get(f"{slow_catalogue}/products/1")

    assert answer.status_code == 500
    assert problem(answer)["type"] == "internal-error"
    assert "secret" not in answer.text
    assert any(record.name == "gateway.errors" and record.exc_info for record in caplog.records)


def test_a_call_with_a_wrong_signature_is_500(slow_catalogue):
    assert requests.get(f"{slow_catalogue}/products").status_code == 500
