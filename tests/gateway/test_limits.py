"""The limits of gateway/limits.py. Most tests start a gateway with counts of its own."""

import re
import signal
import socket
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import requests
import websocket

from gateway import cache
from gateway import limits as limits_module
from gateway.limits import LARGE_BODY_BYTES, OwnCounts
from nameko_reliable.testing.servers import Server, free_port
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.clients import client_at
from tests.infrastructure.feed import Feed

from .conftest import Client, every_answer, problem, provider

WRONG = {"email": "nobody@forage.example", "password": "wrong password"}


def statuses(url, count, **options):
    return [requests.get(url, **options).status_code for _ in range(count)]


def remaining(answer):
    return int(re.search(r";r=(\d+);", answer.headers["RateLimit"])[1])


@every_answer
def test_every_answer_reports_the_limit_and_the_remaining_quota(anonymous, method, path, headers, status):
    answer = anonymous.request(method, path, headers=headers)

    assert answer.status_code == status
    assert answer.headers["RateLimit-Policy"].startswith('"default";q=600000;w=60')
    assert re.match(r'"default";r=59[0-9]{4};t=([1-9]|[1-5][0-9]|60)\b', answer.headers["RateLimit"])


def test_a_cached_answer_reports_the_remaining_quota(run_gateway, new_product):
    url = f"{run_gateway().url}/products/{new_product()['id']}"

    first, second = requests.get(url), requests.get(url)

    assert remaining(second) == remaining(first) - 1


def test_a_refused_handshake_reports_the_limit(shop):
    with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
        websocket.create_connection(shop.ws_url, origin="https://evil.example")

    assert refusal.value.resp_headers["ratelimit-policy"] == '"default";q=600000;w=60'
    assert "ratelimit" in refusal.value.resp_headers


def test_a_request_over_the_limit_is_refused_with_retry_after(run_gateway):
    url = run_gateway(RATE_LIMIT_SCALE="0.01").url
    assert statuses(f"{url}/auth/providers", 6) == [200] * 6

    answer = requests.get(f"{url}/auth/providers")

    assert answer.status_code == 429
    details = problem(answer)
    assert (details["type"], details["instance"]) == ("rate-limited", "/auth/providers")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.headers["RateLimit-Policy"] == '"default";q=6;w=60'
    assert answer.headers["RateLimit"] == f'"default";r=0;t={answer.headers["Retry-After"]}'


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_probes_are_counted_and_never_refused(run_gateway, path):
    url = run_gateway(RATE_LIMIT_SCALE="0.002").url

    answers = [requests.get(url + path) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert [remaining(answer) for answer in answers] == [0] * 3
    assert requests.get(f"{url}/auth/providers").status_code == 429


def test_cached_reads_are_limited(run_gateway, new_product):
    url = f"{run_gateway(RATE_LIMIT_SCALE='0.01').url}/products/{new_product()['id']}"

    assert statuses(url, 7) == [200] * 6 + [429]


def test_a_new_window_restores_the_quota(run_gateway, monkeypatch):
    monkeypatch.setattr(limits_module, "WINDOW_SECONDS", 1)
    url = run_gateway(RATE_LIMIT_SCALE="0.002").url
    wait_for(lambda: requests.get(f"{url}/auth/providers").status_code == 429, pause_seconds=0)

    assert wait_for(lambda: requests.get(f"{url}/auth/providers").status_code == 200)


def test_counts_of_ended_windows_are_not_kept(monkeypatch):
    seconds = 0.0
    monkeypatch.setattr(limits_module, "time", SimpleNamespace(monotonic=lambda: seconds))
    counts = OwnCounts()
    assert [counts.count(client) for client in ("ada", "ada", "bo")] == [(1, 60), (2, 60), (1, 60)]

    seconds = 61.0

    assert counts.count("ada") == (1, 60)
    assert list(counts._windows) == ["ada"]


def test_users_are_counted_separately_and_anonymous_clients_by_address(run_gateway, customer, new_customer, new_token):
    url = run_gateway(RATE_LIMIT_SCALE="0.005").url
    ada, bo = customer.token, new_customer().token
    expired = new_token(sub=str(customer.user["id"]), exp=1)

    def status(token=None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return requests.get(f"{url}/auth/providers", headers=headers).status_code

    assert [status(ada) for _ in range(4)] == [200, 200, 200, 429]
    assert status(bo) == 200
    assert [status(), status(expired), status("nonsense"), status()] == [200, 200, 200, 429]


def test_logins_have_a_separate_limit_by_address(run_gateway, customer, new_customer):
    gateway = run_gateway(RATE_LIMIT_SCALE="0.1")
    ada, bo = (Client(gateway.url, user.token) for user in (customer, new_customer()))

    answers = [client.post("/users/login", WRONG) for client in (ada, bo, ada, bo)]

    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    assert answers[0].headers["RateLimit-Policy"] == '"default";q=60;w=60, "login";q=3;w=60'
    assert re.fullmatch(r'"default";r=59;t=\d+, "login";r=2;t=\d+', answers[0].headers["RateLimit"])
    assert problem(answers[-1])["limit"] == "login"
    assert ada.get("/users/me").status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "allowed"),
    [
        ("/users/register", 422, 2),
        ("/users/password-reset", 422, 1),
        ("/users/login", 422, 3),
        ("/auth/refresh", 401, 6),
    ],
)
def test_costly_and_guessable_routes_are_limited(run_gateway, path, status, allowed):
    url = run_gateway(RATE_LIMIT_SCALE="0.1").url

    answers = [requests.post(url + path, json={}).status_code for _ in range(allowed + 1)]

    assert answers == [status] * allowed + [429]


def test_a_trusted_proxy_names_the_client(run_gateway):
    url = run_gateway(RATE_LIMIT_SCALE="0.002", TRUSTED_PROXIES="127.0.0.1").url

    def status(address):
        return requests.get(f"{url}/auth/providers", headers={"X-Forwarded-For": address}).status_code

    assert [status("203.0.113.1"), status("203.0.113.1"), status("203.0.113.2")] == [200, 429, 200]
    assert [status("2001:db8::1"), status("2001:db8::2:3:4:5"), status("2001:db8:0:1::1")] == [200, 429, 200]


def test_an_untrusted_proxy_does_not_name_the_client(run_gateway):
    url = run_gateway(RATE_LIMIT_SCALE="0.002").url

    assert requests.get(f"{url}/auth/providers", headers={"X-Forwarded-For": "203.0.113.1"}).status_code == 200
    assert requests.get(f"{url}/auth/providers", headers={"X-Forwarded-For": "203.0.113.2"}).status_code == 429


@pytest.fixture
def redis(tmp_path):
    """A Redis of this test's own, with its `uri`."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    server = Server("redis", tmp_path, command, is_ready=lambda: "Ready to accept connections" in server.output())
    server.uri = f"redis://127.0.0.1:{port}/0"
    server.start()
    server.wait_until_ready()
    yield server
    server.kill()


def warnings(caplog):
    return [record for record in caplog.records if record.name == "gateway.limits" and record.levelname == "WARNING"]


def test_gateways_with_one_redis_count_together(run_gateway, redis):
    first, second = (run_gateway(RATE_LIMIT_SCALE="0.005", RATE_LIMIT_STORAGE_URI=redis.uri).url for _ in range(2))

    assert statuses(f"{first}/auth/providers", 2) == [200, 200]
    assert statuses(f"{second}/auth/providers", 2) == [200, 429]
    assert statuses(f"{first}/auth/providers", 1) == [429]


def test_a_gateway_without_its_redis_admits_requests_and_warns_once(run_gateway, redis, monkeypatch, caplog):
    monkeypatch.setattr(limits_module, "STORAGE_PAUSE_SECONDS", 0)
    url = run_gateway(RATE_LIMIT_SCALE="0.002", RATE_LIMIT_STORAGE_URI=redis.uri).url
    assert statuses(f"{url}/auth/providers", 2) == [200, 429]

    for outages in (1, 2):
        redis.stop()
        answers = [requests.get(f"{url}/auth/providers") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"default";q=1;w=60'}
        assert len(warnings(caplog)) == outages

        redis.log.unlink()
        redis.start()
        redis.wait_until_ready()
        assert statuses(f"{url}/auth/providers", 2) == [200, 429]


def test_a_hanging_redis_is_not_asked_for_every_request(run_gateway, redis, caplog):
    gateway = run_gateway(RATE_LIMIT_SCALE="0.002", RATE_LIMIT_STORAGE_URI=redis.uri)
    storage, asked = provider(gateway.container, "limits")._counts._storage, []
    count = storage.incr
    storage.incr = lambda *args: asked.append(args) or count(*args)
    redis.send(signal.SIGSTOP)

    assert statuses(f"{gateway.url}/auth/providers", 10) == [200] * 10

    assert len(asked) == len(warnings(caplog)) == 1
    redis.send(signal.SIGCONT)


def test_a_gateway_starts_while_its_redis_is_unreachable(run_gateway, closed_port):
    url = run_gateway(RATE_LIMIT_STORAGE_URI=f"redis://127.0.0.1:{closed_port}/0").url

    assert requests.get(f"{url}/auth/providers").status_code == 200


def test_requests_over_the_concurrency_limit_are_refused_and_cached_reads_are_not(
    run_gateway, customer, new_product, monkeypatch
):
    monkeypatch.setattr(cache, "TTL_SECONDS", 60)
    gateway = run_gateway()
    client, path = Client(gateway.url, customer.token), f"/products/{new_product()['id']}"
    assert client.get(path).status_code == 200
    monkeypatch.setattr(provider(gateway.container, "limits").in_flight, "maximum", 0)

    refused = client.get("/users/me")

    assert refused.status_code == 503
    assert problem(refused)["type"] == "overloaded"
    assert int(refused.headers["Retry-After"]) > 0
    assert client.get(path).status_code == 200
    assert client.get("/livez").status_code == 200
    feed = Feed(gateway.ws_url)
    assert feed.receive()["type"] == "connected"
    feed.close()


def test_every_request_releases_its_slot(run_gateway, customer, monkeypatch):
    gateway = run_gateway()
    monkeypatch.setattr(provider(gateway.container, "limits").in_flight, "maximum", 1)
    client = Client(gateway.url, customer.token)

    statuses = [client.get(path).status_code for path in ("/users/me", "/orders/0", "/users/me?x=1", "/users/me")]

    assert statuses == [200, 404, 422, 200]


HEAD = b"POST /users/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BIG = b" " * (LARGE_BODY_BYTES + 1)
FRAMINGS = [b"Content-Length: %d\r\n\r\n" % len(BIG), b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BIG)]


def port_of(gateway):
    return int(gateway.url.rpartition(":")[2])


@contextmanager
def slow_bodies(gateway, count, start, address="127.0.0.1"):
    """`count` connections that have sent the start of a request and send nothing more."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port_of(gateway)), source_address=(address, 0))
            stack.enter_context(connection).sendall(start)
        yield


def status_from(address, gateway, body):
    return client_at(address).post(f"{gateway.url}/users/login", data=body, timeout=10).status_code


@pytest.mark.parametrize("framing", FRAMINGS)
def test_unfinished_bodies_block_no_other_request(run_gateway, framing):
    gateway = run_gateway()

    with slow_bodies(gateway, limits_module.MAX_LARGE_BODIES + 1, HEAD + framing + b" "):
        statuses = [status_from("127.0.0.1", gateway, body) for body in (BIG, iter([BIG]))]

    assert statuses == [415, 415]


@pytest.mark.parametrize("framing", FRAMINGS)
def test_concurrent_large_bodies_are_limited_for_each_address(run_gateway, monkeypatch, framing):
    monkeypatch.setattr(limits_module, "MAX_LARGE_BODIES_PER_ADDRESS", 2)
    gateway = run_gateway(RATE_LIMIT_SCALE="1")
    large_bodies = provider(gateway.container, "limits").large_bodies

    with slow_bodies(gateway, 2, HEAD + framing + BIG[:-1], address="127.0.3.1"):
        wait_for(lambda: large_bodies.taken == 2)
        refused = client_at("127.0.3.1").post(f"{gateway.url}/users/login", data=BIG)
        small = status_from("127.0.3.1", gateway, b"{}")
        another_address = status_from("127.0.3.2", gateway, BIG)

    assert refused.status_code == 503
    assert problem(refused)["type"] == "overloaded"
    assert (small, another_address) == (415, 415)
    # A client that has disconnected or got its answer is no longer counted.
    wait_for(lambda: large_bodies.taken == 0)
    assert [status_from("127.0.3.1", gateway, BIG) for _ in range(3)] == [415] * 3


def test_concurrent_large_bodies_of_all_addresses_are_limited(run_gateway, monkeypatch):
    monkeypatch.setattr(limits_module, "MAX_LARGE_BODIES", 1)
    gateway = run_gateway()

    with slow_bodies(gateway, 1, HEAD + FRAMINGS[0] + BIG[:-1], address="127.0.3.1"):
        wait_for(lambda: provider(gateway.container, "limits").large_bodies.taken == 1)
        status = status_from("127.0.3.2", gateway, BIG)

    assert status == 503


def test_concurrent_requests_are_limited_for_each_address(run_gateway, customer, monkeypatch):
    gateway = run_gateway(RATE_LIMIT_SCALE="1")
    in_flight = provider(gateway.container, "limits").in_flight
    monkeypatch.setattr(in_flight, "max_per_address", 1)
    headers = {"Authorization": f"Bearer {customer.token}"}

    with in_flight.take("127.0.3.1"):
        statuses = [
            client_at(address).get(f"{gateway.url}/users/me", headers=headers).status_code
            for address in ("127.0.3.1", "127.0.3.2")
        ]

    assert statuses == [503, 200]
