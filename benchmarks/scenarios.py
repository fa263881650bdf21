"""The scenarios. Each lasts some seconds and does not affect the others."""

import selectors
import signal
import time
from itertools import cycle, repeat
from uuid import uuid4

import psutil

from benchmarks import load
from benchmarks.load import BenchmarkFailed, LoadResult, request
from benchmarks.shop import PASSWORD, scenario, seconds_for
from nameko_reliable.testing.waiting import wait_for

WARM_UP_SECONDS = 1
CLIENTS = 32
CUSTOMERS = 8
SOCKETS = 1000
PUSHES = 10
EVENTS = 2000
# Far above the ids of real orders.
FIRST_INVENTED_ORDER = 10**12
SENT = f"notifications WHERE order_id >= {FIRST_INVENTED_ORDER} AND status = 'sent'"


def measure(shop, report, name, clients, expected=200, settle=False):
    """clients: makes a new list of clients, as the warm-up uses one up."""

    def run(seconds):
        return load.http(shop.port, clients(), seconds, expected)

    run(WARM_UP_SECONDS)
    if settle:
        shop.wait_until_settled()
    return report.measure(name, lambda: run(report.seconds), settle)


@scenario("idle")
def idle(shop, report):
    """The CPU time of idle processes: heartbeats, timers, and the queries of relays and polls."""
    report.title("Idle, per second")

    def wait():
        time.sleep(report.seconds)
        return report.seconds

    report.count("no requests", report.seconds, wait)


@scenario("catalogue")
def catalogue(shop, report):
    """Reads of the catalogue: from the gateway's cache, and, for admins, from products."""
    report.title("Catalogue, GET")
    product = f"/products/{shop.products()[0]['id']}"
    with load.connect(shop.port, 0) as socket:
        socket.sendall(request("GET", product))
        etag = socket.recv(65536).partition(b"ETag: ")[2].partition(b"\r\n")[0].decode()

    def all_send(data):
        return lambda: [repeat(data)] * CLIENTS

    admin = {"Authorization": f"Bearer {shop.admin()}"}
    measure(shop, report, "a product", all_send(request("GET", product)))
    measure(shop, report, "a product, unchanged (304)", all_send(request("GET", product, If_None_Match=etag)), 304)
    measure(shop, report, "a page of 20", all_send(request("GET", "/products?limit=20")))
    measure(shop, report, "a product, not cached", all_send(request("GET", product, **admin)))
    measure(shop, report, "a page of 20, not cached", all_send(request("GET", "/products?limit=20", **admin)))


@scenario("orders")
def orders(shop, report):
    """Orders of one line, with their follow-up work: reservations settled, notifications stored, mails sent."""
    report.title("Orders, POST, with their follow-up work")
    products, tokens = shop.products(), shop.customers(CUSTOMERS)
    bytes_before, orders_before = shop.database_bytes(), shop.count("orders", "orders")
    for name, clients, chosen in (
        ("one customer", 1, products),
        (f"{CLIENTS} customers", CLIENTS, products),
        (f"{CLIENTS} customers, one product", CLIENTS, products[:1]),
    ):
        place_orders(shop, report, name, clients, chosen, tokens)
    shop.check_books()
    report.note("The books are right.")
    placed = shop.count("orders", "orders") - orders_before
    grown = {service: (size - bytes_before[service]) / placed for service, size in shop.database_bytes().items()}
    each = ", ".join(f"{service} {size / 1024:.1f}" for service, size in grown.items())
    report.note(f"KiB that each of the {placed} orders added to the databases: {each}.")


def place_orders(shop, report, name, clients, products, tokens):
    return measure(shop, report, name, lambda: ordering(clients, products, tokens), 201, settle=True)


def ordering(clients, products, tokens):
    """Clients that each order one unit of a product, again and again. clients: their number."""

    def place(number):
        product, token = products[number % len(products)], tokens[number % len(tokens)]
        item = {"product_id": product["id"], "quantity": 1, "unit_price": product["price"]}
        while True:
            headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": uuid4().hex}
            yield request("POST", "/orders", {"items": [item]}, **headers)

    return [place(number) for number in range(clients)]


@scenario("lists")
def lists(shop, report):
    """Pages of 20 of a customer's orders and notifications."""
    report.title("A customer's lists, GET, pages of 20 of at least 100")
    [token] = shop.customers(1)
    product = shop.products()[0]
    authorization = {"Authorization": f"Bearer {token}"}
    body = {"items": [{"product_id": product["id"], "quantity": 1}]}
    for _ in range(100):
        shop.request("POST", "/orders", body, token)
    shop.wait_until_settled()
    for path in ("/orders?limit=20", "/notifications?page_size=20"):
        data = request("GET", path, **authorization)
        measure(shop, report, path, lambda data=data: [repeat(data)] * CLIENTS)


@scenario("logins")
def logins(shop, report):
    """Correct passwords, hashed by bcrypt with the default of 12 rounds."""
    report.title("Logins, POST")
    shop.customers(CUSTOMERS)
    accounts = [{"email": f"customer-{number}@forage.example", "password": PASSWORD} for number in range(CUSTOMERS)]
    requests = [request("POST", "/users/login", account) for account in accounts]
    measure(shop, report, "one customer", lambda: [cycle(requests)])
    measure(shop, report, f"{CUSTOMERS} customers", lambda: [repeat(data) for data in requests])


@scenario("rpc")
def rpc(shop, report):
    """products.health, one SELECT, called by a bare AMQP client."""
    report.title("RPC: products.health")
    for outstanding in (1, CLIENTS):

        def run(seconds, outstanding=outstanding):
            return load.rpc(shop.settings.amqp_uri(), "products", "health", outstanding, seconds)

        run(WARM_UP_SECONDS)
        report.measure(f"{outstanding} at once", lambda run=run: run(report.seconds))


@scenario("sockets")
def sockets(shop, report):
    """Open WebSockets, and product changes that are pushed to all of them."""
    report.title(f"WebSockets: a change of a product, pushed to {SOCKETS}")
    gateway = psutil.Process(shop.replicas["gateway"][0].process.pid)
    products, admin = shop.products(), shop.admin()
    memory_before = gateway.memory_info().rss
    held = [_open_socket(shop, number) for number in range(SOCKETS)]
    memory_bytes = gateway.memory_info().rss - memory_before
    try:
        report.measure("messages", lambda: _push(shop, held, products[:PUSHES], admin))
    finally:
        for socket in held:
            socket.close()
    report.note(f"Each of {SOCKETS} sockets took {memory_bytes / SOCKETS / 1024:.0f} KiB of the gateway's memory.")


def _open_socket(shop, number):
    socket = load.connect(shop.port, number)
    handshake = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    socket.sendall(request("GET", "/ws/notifications", Sec_WebSocket_Key="Zm9yYWdlLWJlbmNobWFyaw==", **handshake))
    data = b""
    while b'"type":"connected"' not in data:
        more = socket.recv(65536)
        if not more:
            raise BenchmarkFailed(f"A WebSocket was refused: {data.decode(errors='replace')}")
        data += more
    return socket


def _push(shop, held, products, admin):
    """Change each product once, and wait for it at every socket. A latency starts with the change's request."""
    result, started_at = LoadResult(), time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for socket in held:
            selector.register(socket, selectors.EVENT_READ)
        for product in products:
            changed_at = time.perf_counter()
            shop.request("PATCH", f"/products/{product['id']}/stock", {"delta": 1}, admin)
            left = len(held)
            while left:
                ready = selector.select(load.ANSWER_SECONDS)
                if not ready:
                    raise BenchmarkFailed(f"{left} of {len(held)} sockets did not get a change.")
                for key, _ in ready:
                    if b'"type":"product"' in key.fileobj.recv(65536):
                        result.latencies_ms.append((time.perf_counter() - changed_at) * 1000)
                        left -= 1
    result.seconds = time.perf_counter() - started_at
    return result


@scenario("events")
def events(shop, report):
    """A backlog of order.created, from the outbox to products, to notifications, and to mails.

    The orders do not exist: neither products nor notifications checks them. Processes that are not measured are
    paused, for less time than the broker's heartbeat timeout.
    """
    report.title(f"Events: a backlog of {EVENTS} order.created, step by step")
    shop.wait_until_settled()
    inbox = shop.count("products", "inbox")
    handlers = [replica for part in ("products", "notifications") for replica in shop.replicas[part]]
    for replica in handlers:
        replica.send(signal.SIGSTOP)
    try:
        _fill_outbox(shop)
        wait_for(lambda: shop.count("orders", "outbox") < EVENTS, pause_seconds=0.001)
        left = shop.count("orders", "outbox")
        report.count("relayed", left, lambda: seconds_for(lambda: not shop.count("orders", "outbox")))
        for part, name, done in (
            ("products", "reservations committed", lambda: shop.count("products", "inbox") - inbox == EVENTS),
            ("notifications", "notifications stored, mails sent", lambda: shop.count("notifications", SENT) == EVENTS),
        ):
            for replica in shop.replicas[part]:
                replica.send(signal.SIGCONT)
            report.count(name, EVENTS, lambda done=done: seconds_for(done))
    finally:
        for replica in handlers:
            replica.send(signal.SIGCONT)
    shop.sql("notifications", "DELETE FROM notifications WHERE order_id >= %s", FIRST_INVENTED_ORDER)


def _fill_outbox(shop):
    shop.sql(
        "orders",
        """
        INSERT INTO outbox (event_id, event_name, key, payload)
        SELECT id, 'order.created', order_id, jsonb_build_object(
            'event_id', id, 'timestamp', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), 'version', 1,
            'order_id', order_id, 'sequence', 1, 'user_id', 1, 'user_email', 'nobody@forage.example',
            'email_verified', true,
            'status', 'pending', 'total_amount', '9.90', 'reservation_id', gen_random_uuid(),
            'items', jsonb_build_array(jsonb_build_object('product_id', 1, 'product_name', 'Chanterelle',
                'product_price', '9.90', 'quantity', 1, 'subtotal', '9.90')))
        FROM (SELECT gen_random_uuid() AS id, %s + n AS order_id FROM generate_series(1, %s) AS n) AS made_up
        """,
        FIRST_INVENTED_ORDER,
        EVENTS,
    )


@scenario("replicas")
def replicas(shop, report):
    """Orders with more replicas. On a machine with few cores they do not add throughput, but show their cost."""
    report.title(f"Orders of {CLIENTS} customers, with more replicas of each of orders, products and gateway")
    products, tokens = shop.products(), shop.customers(CUSTOMERS)
    for replicas in (1, 2, 3):
        shop.scale(orders=replicas, products=replicas, gateway=replicas)
        place_orders(shop, report, f"{replicas} of each", CLIENTS, products, tokens)
    shop.scale()
    shop.check_books()
    report.note("The books are right.")
