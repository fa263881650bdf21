"""The trace of an order, in a real collector, of services and a gateway started with `nameko run`."""

import json
import logging
import subprocess
import sys
import time
from contextlib import closing
from uuid import uuid4

import jwt
import pytest
import requests

from dev.settings import ROOT
from nameko_reliable.telemetry import tracing
from nameko_reliable.testing.waiting import wait_for
from services.notifications import Notifications
from services.orders import Orders
from services.products import Products
from tests.factories import a_customer
from tests.infrastructure.feed import Feed
from tests.shop import Shop

EMAIL = "ada@forage.example"
PRODUCT = {"name": "Morel", "price": "9.50", "sku": "MOREL-1", "stock_quantity": 9}


@pytest.fixture
def customer(config):
    """The headers of a customer's requests."""
    now = int(time.time())
    claims = {"sub": "1", "email": EMAIL, "email_verified": True, "role": "customer"}
    claims |= {"jti": uuid4().hex, "iat": now, "exp": now + 900}
    return {"Authorization": f"Bearer {jwt.encode(claims, config['JWT_SECRET'], algorithm='HS256')}"}


@pytest.fixture
def shop(processes, config, broker, smtp):
    """`start(…)` starts all services but users in one process: a Shop with `url`, and `product`'s id."""
    shop = Shop(config, broker)

    def start(**environment):
        shop.process = processes.start(
            "services.products", "services.orders", "services.notifications", "gateway", **environment
        )
        shop.url = f"http://127.0.0.1:{config['GATEWAY_PORT']}"
        wait_for(lambda: "listening on port" in shop.process.output())
        wait_for(lambda: parts_up(shop) == {"products", "orders", "notifications"})
        shop.product = shop.rpc.products.create_product(**PRODUCT)["id"]
        return shop

    yield start
    shop.stop()


def parts_up(shop):
    services = requests.get(f"{shop.url}/health", timeout=10).json()["services"]
    return {name for name, service in services.items() if service["status"] == "up"}


def listen(shop, customer):
    feed = Feed(f"{shop.url.replace('http', 'ws')}/ws/notifications", header=customer)
    feed.receive_until("authenticated")
    return closing(feed)


def place_order(shop, customer, **headers):
    body = {"items": [{"product_id": shop.product, "quantity": 2}]}
    answer = requests.post(f"{shop.url}/orders", json=body, headers={**customer, **headers}, timeout=10)
    assert answer.status_code == 201, answer.text
    return answer


# The spans of an order in every process, each under its parent.
TREE = """\
gateway: server POST /orders
  gateway: client orders/create_order
    orders: server orders/create_order
      orders: client INSERT attempts
      orders: client PREPARE attempts
      orders: client PREPARE attempts
      orders: client UPDATE attempts
      orders: client products/reserve_stock
        products: server products/reserve_stock
          gateway: consumer process products.events:product.changed
          products: client INSERT reservations
          products: client PREPARE reservations
          products: producer send products.events:product.changed
      orders: producer create orders.events:order.created
        notifications: consumer process orders.events:order.created
          gateway: consumer process notifications.events:notification.created
            gateway: producer WebSocket push
          notifications: client INSERT notifications
          notifications: client PREPARE notifications
          notifications: client PREPARE notifications
          notifications: client SMTP send
            notifications: client PREPARE notifications
            notifications: client UPDATE notifications
          notifications: client UPDATE notifications
          notifications: producer send notifications.events:notification.created
        orders: producer send orders.events:order.created
"""


def tree(spans, parent, depth=0):
    """The spans below a parent, indented, sorted by their texts."""
    children = [span for span in spans if span.parent_id == parent.span_id]
    texts = sorted(tree(spans, child, depth + 1) for child in children)
    return f"{'  ' * depth}{parent}\n{''.join(texts)}"


def test_an_order_is_one_trace_from_the_request_to_its_mail_and_push(shop, customer, collector, smtp):
    shop = shop(**collector.settings, OTEL_BSP_SCHEDULE_DELAY="100")
    stranger = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with listen(shop, customer):
        answer = place_order(shop, customer, traceparent=stranger)
        [root] = wait_for(lambda: collector.find("POST /orders"))

        def whole():
            spans = [span for span in collector.spans if span.trace_id == root.trace_id]
            assert tree(spans, root) == TREE
            return spans

        spans = wait_for(whole)
    # The trace of an outside caller is linked, but does not decide about sampling.
    assert root.parent_id is None
    assert root.links == [tuple(stranger.split("-")[1:3])]
    assert root.trace_id != root.links[0][0]
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/orders",
        "url.path": "/orders",
        "url.scheme": "http",
        "http.response.status_code": 201,
        "http.request.header.x-request-id": [answer.headers["X-Request-ID"]],
    }
    assert not any(span.is_error or span.status_message or span.events for span in spans)
    exported = b"".join(collector.bodies)
    for personal in (EMAIL, customer["Authorization"].removeprefix("Bearer "), "Morel"):
        assert personal.encode() not in exported
    sent, answered = (wait_for(lambda end=end: line_of(shop, end)) for end in ("was sent", "POST /orders 201"))
    assert {sent["trace_id"], answered["trace_id"]} == {root.trace_id}
    assert {sent["request_id"], answered["request_id"]} == {answer.headers["X-Request-ID"]}


def line_of(shop, end):
    """The log line whose message ends with `end`, or None before that line."""
    # The last line may be incomplete.
    whole = [line for line in shop.process.output().splitlines() if line.startswith("{") and line.endswith("}")]
    return next((line for line in map(json.loads, whole) if line["message"].endswith(end)), None)


def test_an_unreachable_collector_loses_no_order_and_is_logged_once(own_shop, smtp, closed_port, caplog, monkeypatch):
    # An earlier test may have logged the warning within this minute.
    monkeypatch.setattr(tracing._limit_export_warnings, "_next_at", 0.0)
    for service in (Products, Orders, Notifications):
        own_shop.run(
            service, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{closed_port}", OTEL_TRACES_SAMPLER_ARG="1"
        )
    product, customer = own_shop.rpc.products.create_product(**PRODUCT)["id"], a_customer()

    for _ in range(3):
        items = [{"product_id": product, "quantity": 1}]
        own_shop.rpc.orders.create_order(**customer, items=items)

    wait_for(lambda: len(smtp.messages(to=customer["user_email"])) == 3)
    began_at = time.monotonic()
    own_shop.stop()
    assert time.monotonic() - began_at < 10
    said = [record for record in caplog.records if record.name.startswith("opentelemetry")]
    # Spans that end later may also be logged, but not as an error.
    assert len([record for record in said if record.levelno >= logging.WARNING]) == 1


def test_without_an_endpoint_opentelemetry_is_not_imported(config):
    settings = {**config, "DB_URIS": {"orders": "postgresql+psycopg2://nobody@localhost/orders"}}
    program = """
import eventlet; eventlet.monkey_patch()
import json, sys
from nameko.containers import ServiceContainer
import gateway
from services.orders import Orders
for service in (Orders, gateway.Gateway):
    container = ServiceContainer(service, json.loads(sys.argv[1]))
    container.extensions.all.setup()
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""

    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, json.dumps({**settings, "GATEWAY_PORT": "0"})],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert answer.stdout == "[]\n", answer.stderr
