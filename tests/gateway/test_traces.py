"""The spans of requests and pushes, and which traces are kept."""

import socket

import pytest
import requests

from gateway.live import MAX_QUEUED, PUSH
from nameko_reliable.telemetry.tracing import Operation
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.feed import Feed

from .conftest import provider
from .test_server import server_of

# Its flag says that it is kept, and a sampler by trace id would keep it at any ratio.
FROM_OUTSIDE = f"00-{'1' * 16}{'0' * 16}-{'1' * 16}-01"


@pytest.fixture
def gateway(run_gateway, collector, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    return run_gateway(**collector.settings)


def test_a_client_cannot_force_a_trace_to_be_kept(run_gateway, collector):
    gateway = run_gateway(**{**collector.settings, "OTEL_TRACES_SAMPLER_ARG": "0"})

    answer = requests.get(f"{gateway.url}/products", headers={"traceparent": FROM_OUTSIDE}, timeout=10)

    assert answer.status_code == 200
    gateway.container.stop()
    assert collector.spans == []


def test_a_span_is_named_by_its_route_even_for_a_cached_answer(gateway, collector):
    def made_a_call():
        requests.get(f"{gateway.url}/products?name=secret", timeout=10)
        return {collector.find("products/list_products", below=span) != [] for span in collector.find("GET /products")}

    # The event of another test's product may empty the cache.
    wait_for(lambda: made_a_call() == {True, False})

    assert {span.attributes["http.route"] for span in collector.find("GET /products")} == {"/products"}
    assert b"secret" not in b"".join(collector.bodies)


def test_a_span_reveals_no_unknown_path_and_no_invented_method(gateway, collector):
    requests.request("ADA", f"{gateway.url}/ada@forage.example", timeout=10)

    [span] = wait_for(lambda: collector.find("HTTP"))

    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.response.status_code"] == 404
    assert not span.is_error
    assert b"ada@" not in b"".join(collector.bodies)


def test_an_answer_of_500_or_more_is_an_error(gateway, collector):
    provider(gateway.container, "limits").in_flight.maximum = 0

    requests.get(f"{gateway.url}/products/1", timeout=10)

    [span] = wait_for(lambda: collector.find("GET /products/{product_id}"))
    assert (span.is_error, span.attributes["error.type"]) == (True, "503")


def test_a_websocket_makes_no_span(gateway, collector):
    feed = Feed(gateway.ws_url)
    assert feed.receive()["type"] == "connected"
    feed.close()
    wait_for(lambda: not server_of(gateway.container).listener.connections)
    requests.get(f"{gateway.url}/livez", timeout=10)

    wait_for(lambda: collector.find("GET /livez"))

    assert {span.name for span in collector.spans} == {"GET /livez"}


def test_a_request_that_offers_another_protocol_makes_a_span(gateway, collector):
    requests.get(f"{gateway.url}/livez", headers={"Upgrade": "h2c", "Connection": "Upgrade"}, timeout=10)

    wait_for(lambda: collector.find("GET /livez"))


def test_a_push_that_never_reaches_its_socket_is_an_error(gateway, collector):
    live_feed = provider(gateway.container, "live_feed")
    feed = Feed(gateway.ws_url, sockopt=((socket.SOL_SOCKET, socket.SO_RCVBUF, 4096),))
    assert feed.receive()["type"] == "connected"
    [client] = live_feed._clients

    with live_feed.tracer.entry_span(Operation("order")):
        for _ in range(MAX_QUEUED + 2):
            # The first is never sent completely, and the last does not fit into the queue.
            client.enqueue("x" * 1_000_000, live_feed.tracer.span(PUSH))

    pushes = wait_for(lambda: len(found := collector.find(PUSH.name)) == MAX_QUEUED + 2 and found)
    assert all(push.is_error for push in pushes)
