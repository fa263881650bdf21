"""The whole shop in containers: `make test-docker`."""

import json
import time

import pytest
import requests

from contracts.types import SERVICES
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.feed import Feed

from .conftest import PROCESSES

pytestmark = pytest.mark.server

# docker-compose.yml's stop_grace_period.
GRACE_SECONDS = 15


@pytest.fixture
def ada(project):
    with project.session() as session:
        yield session


def placed(answer):
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_an_order_through_nginx_is_pushed_and_mailed(project, ada):
    feed = Feed(f"{project.storefront.replace('http', 'ws')}/ws/notifications")
    feed.send(type="authenticate", token=ada.token)
    feed.receive_until("authenticated")

    order = placed(project.order(ada, quantity=2))

    pushed = feed.receive()
    feed.close()
    assert (pushed["type"], pushed["data"]["order_id"]) == ("notification", order["id"])

    def is_mailed():
        mails = requests.get(f"{project.mail}/api/email", timeout=10).json()
        return any(f"{order['id']}" in mail["subject"] for mail in mails)

    wait_for(is_mailed)


def test_nginx_serves_the_storefront_and_the_gateways_docs(project):
    page = requests.get(project.storefront, timeout=10)
    docs = requests.get(f"{project.storefront}/api/docs/swagger-ui.css", timeout=10)

    assert (page.status_code, docs.status_code) == (200, 200)
    assert '<div id="app">' in page.text
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")


def test_a_killed_service_comes_back(project, ada):
    (before,) = project.containers("orders")

    # By its process id, since Docker does not restart a container after `docker kill`.
    kill = ("--entrypoint=sh", "forage:local", "-c", f"kill -9 {before.pid}")
    project.docker("run", "--rm", "--pid=host", "--user=0", *kill)

    wait_for(lambda: project.latest("orders").restarts == before.restarts + 1)
    wait_for(project.is_healthy, seconds=60)
    placed(project.order(ada))
    assert project.latest("orders").id == before.id


def test_replicas_share_the_work(project, ada):
    project.up("--no-recreate", "--scale", "orders=3", "orders")
    try:
        assert len(project.containers("orders")) == 3
        queues = project.compose("exec", "-T", "rabbitmq", "rabbitmqctl", "-q", "list_queues", "name", "consumers")
        assert "rpc-orders\t3" in queues.splitlines()
        for _ in range(6):
            placed(project.order(ada))
    finally:
        project.up("--no-recreate", "--scale", "orders=1", "orders")
    placed(project.order(ada))


def test_prometheus_finds_every_process_and_its_alerts(project):
    project.compose("up", "--detach", "--no-build", "prometheus")

    def answers(job):
        query = ("promtool", "query", "instant", "--format=json", "http://localhost:9090", f'up{{job="{job}"}}')
        return [series["value"][1] for series in json.loads(project.compose("exec", "-T", "prometheus", *query))]

    wait_for(lambda: answers("forage") == ["1"] * len((*SERVICES, "gateway")), seconds=60, pause_seconds=1)
    wait_for(lambda: answers("rabbitmq") == ["1"], seconds=60, pause_seconds=1)
    checked = project.compose(
        "exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml"
    )
    assert "1 rule files found" in checked


def test_a_customer_signs_in_with_the_local_provider(project):
    with requests.Session() as browser:
        to_provider = browser.get(f"{project.storefront}/api/auth/google", allow_redirects=False, timeout=10)
        issuer = f"http://sign-in.localhost:{project.ports['OIDC_PORT']}"
        assert to_provider.headers["Location"].startswith(issuer)
        # Browsers resolve this name to this machine; Python may not.
        chosen = browser.post(
            to_provider.headers["Location"].replace("sign-in.localhost", "127.0.0.1"),
            data={"sub": "ada"},
            allow_redirects=False,
            timeout=10,
        )
        back = browser.get(
            chosen.headers["Location"].replace("http://localhost", "http://127.0.0.1"),
            allow_redirects=False,
            timeout=10,
        )

    assert back.status_code == 302, back.text
    assert "/auth/callback#token=" in back.headers["Location"]


def status_of(project, container):
    """The fields of /proc/1/status in a container."""
    lines = project.docker("exec", container.id, "cat", "/proc/1/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_no_process_has_capabilities_or_root(project):
    for container in project.containers():
        status = status_of(project, container)

        assert "0" not in status["Uid"].split(), container.name
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, container.name
        assert status["NoNewPrivs"] == "1", container.name
        assert container.inspected["HostConfig"]["ReadonlyRootfs"], container.name


def test_the_shops_processes_run_as_one_user(project):
    for service in PROCESSES:
        (container,) = project.containers(service)

        assert status_of(project, container)["Uid"].split() == ["10001"] * 4


def test_only_nginx_the_gateway_and_the_demo_pages_are_published(project):
    published = {
        container.name: {binding["HostIp"] for bindings in ports.values() for binding in bindings}
        for container in project.containers()
        if (ports := {port: to for port, to in container.inspected["NetworkSettings"]["Ports"].items() if to})
    }

    assert published.keys() == {"frontend", "gateway", "sign-in", "mail-web"}
    assert set.union(*published.values()) == {"127.0.0.1"}


def test_a_service_has_no_route_out_of_its_network(project):
    routes = project.compose("exec", "-T", "orders", "cat", "/proc/net/route").splitlines()[1:]

    assert routes
    assert "00000000" not in {route.split()[1] for route in routes}


KEYS_OF_REDIS = """
REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /run/secrets/redis_conf) redis-cli --scan
"""


def read_products(address, forwarded_for=None):
    headers = {"X-Forwarded-For": forwarded_for} if forwarded_for else {}
    answer = requests.get(f"{address}/products", headers=headers, timeout=10)
    assert answer.status_code == 200, answer.text


def test_rate_limits_count_the_client_behind_nginx_and_a_local_proxy(project):
    (nginx,) = project.containers("frontend")
    networks = nginx.inspected["NetworkSettings"]["Networks"]

    read_products(f"{project.storefront}/api")
    # As a proxy forwards it: the header that a customer forged, followed by the customer's address.
    read_products(f"{project.storefront}/api", forwarded_for="192.0.2.66, 203.0.113.7")
    read_products(project.gateway, forwarded_for="198.51.100.5")

    counted = project.compose("exec", "-T", "redis", "sh", "-c", KEYS_OF_REDIS).splitlines()
    # A client on this machine counts with the bridge's address, which nginx sees, not with nginx's own.
    assert f"LIMITS:default/{networks['forage-test_storefront']['Gateway']}" in counted
    assert f"LIMITS:default/{networks['forage-test_shop']['IPAddress']}" not in counted
    # The customer counts. The forged address does not, nor a header that is sent to the gateway directly.
    assert "LIMITS:default/203.0.113.7" in counted
    assert not {"LIMITS:default/192.0.2.66", "LIMITS:default/198.51.100.5"} & set(counted)


LEFT_OVER = """
for program in gcc cc make npm; do command -v $program; done
find / -xdev -path '*/.cache/*' -o -xdev -path '*/_cacache/*'
true
"""


def test_the_images_contain_no_compiler_and_no_build_caches(project):
    for image in ("forage:local", "forage-frontend:local"):
        assert project.docker("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", LEFT_OVER) == ""


def test_a_missing_secret_ends_a_container_with_a_sentence(project):
    output = project.docker_fails("run", "--rm", "-e", "JWT_SECRET_FILE=/run/secrets/none", "forage:local")

    assert output == "JWT_SECRET_FILE is /run/secrets/none, which is not a file that can be read.\n"


def test_processes_stop_cleanly_within_the_grace_period(project):
    started_at = time.monotonic()

    try:
        project.compose("stop", *PROCESSES)

        assert time.monotonic() - started_at < GRACE_SECONDS
        assert {service: project.latest(service).exit_code for service in PROCESSES} == dict.fromkeys(PROCESSES, 0)
    finally:
        project.up()


def test_down_and_up_again_keeps_the_data(project, ada):
    order = placed(project.order(ada))

    project.down("--timeout", "30")
    project.up()

    wait_for(lambda: "Seeded before: nothing to add." in project.compose("logs", "seed"), seconds=60)
    with project.session() as ada_again:
        kept = ada_again.get(f"{project.storefront}/api/orders/{order['id']}", timeout=10)
    assert kept.json()["items"] == order["items"]
