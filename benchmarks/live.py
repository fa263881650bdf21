"""Pushes: to one customer after an order, and to many idle WebSockets."""

import selectors
import time
from statistics import median

import psutil

from benchmarks import load
from benchmarks.load import BenchmarkFailed, LoadResult, request
from benchmarks.orders import ordering
from benchmarks.shop import scenario

SOCKETS = 2000
PUSHES = 10
# The shop is idle before each order.
IDLE_SECONDS = 0.05


@scenario("push")
def push(shop, report):
    """An order of two lines in an idle shop, and the push of its notification. The times begin with the answer."""
    report.title("Order → push")
    token = shop.customer("customer-0")
    [orders] = ordering(1, shop.products(), [token], 2)
    with open_socket(shop, 0, token) as socket, load.connect(shop.port, 1) as customer:
        _order_and_wait(customer, socket, next(orders))

        def run():
            result, started_at = LoadResult(), time.perf_counter()
            while time.perf_counter() - started_at < report.seconds:
                shop.wait_until_settled()
                time.sleep(IDLE_SECONDS)
                result.latencies_ms.append(_order_and_wait(customer, socket, next(orders)))
            result.seconds = time.perf_counter() - started_at
            return result

        report.measure("order → push, after the order's answer", run, shop.wait_until_settled)


def _order_and_wait(customer, socket, data):
    """Place an order, and wait for its push. The ms from the answer to the push, 0 if the push came first."""
    customer.sendall(data)
    answered_at = pushed_at = None
    with selectors.DefaultSelector() as selector:
        for each in (customer, socket):
            selector.register(each, selectors.EVENT_READ)
        while answered_at is None or pushed_at is None:
            ready = selector.select(load.ANSWER_SECONDS)
            if not ready:
                raise BenchmarkFailed("An order's push did not come.")
            for key, _ in ready:
                received = key.fileobj.recv(65536)
                if key.fileobj is customer:
                    if not received.startswith((b"HTTP/1.1 201", b"{")):
                        raise BenchmarkFailed(f"An order was answered {received.decode(errors='replace')}")
                    answered_at = time.perf_counter()
                elif b'"type":"notification"' in received:
                    pushed_at = time.perf_counter()
    return max(0.0, pushed_at - answered_at) * 1000


@scenario("sockets")
def sockets(shop, report):
    """Open WebSockets, and product changes that are pushed to all of them."""
    report.title(f"WebSockets: a change of a product, pushed to {SOCKETS}")
    _, memory_bytes, push_ms = push_to_all(shop, report, "messages", SOCKETS)
    report.figure("memory of a socket", memory_bytes / 1000, "kB")
    report.figure("a push to all, until the last has it", push_ms, "ms")


def push_to_all(shop, report, name, number):
    """(row of the messages, bytes of memory of a socket, ms of a push until the last of that number has it)."""
    gateway = psutil.Process(shop.replicas["gateway"][0].process.pid)
    products, admin = shop.products(), shop.admin()
    memory_before = gateway.memory_info().rss
    held = [open_socket(shop, each) for each in range(number)]
    memory_bytes = gateway.memory_info().rss - memory_before
    shop.wait_until_idle("gateway")
    pushes_ms = []
    try:
        row = report.measure(name, lambda: _push(shop, held, products[:PUSHES], admin, pushes_ms))
    finally:
        for socket in held:
            socket.close()
        # Closing them is work, which must not be counted as the next row's.
        shop.wait_until_idle("gateway")
    return row, memory_bytes / number, median(pushes_ms)


def open_socket(shop, number, token=None):
    socket = load.connect(shop.port, number)
    handshake = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    if token:
        handshake["Authorization"] = f"Bearer {token}"
    socket.sendall(request("GET", "/ws/notifications", Sec_WebSocket_Key="Zm9yYWdlLWJlbmNobWFyaw==", **handshake))
    awaited = b'"type":"authenticated"' if token else b'"type":"connected"'
    data = b""
    while awaited not in data:
        more = socket.recv(65536)
        if not more:
            raise BenchmarkFailed(f"A WebSocket was refused: {data.decode(errors='replace')}")
        data += more
    return socket


def _push(shop, held, products, admin, pushes_ms):
    """Change each product once, and wait for it at every socket. A latency starts with the change's request.

    pushes_ms: gets the time of each change until the last socket has it.
    """
    result, started_at = LoadResult(), time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for socket in held:
            selector.register(socket, selectors.EVENT_READ)
        for product in products:
            changed_at = time.perf_counter()
            shop.request("PATCH", f"/products/{product['id']}/stock", {"delta": 1}, admin)
            # Changes of other products may still come.
            awaited, left = b'"data":{"id":%d,' % product["id"], set(held)
            while left:
                ready = selector.select(load.ANSWER_SECONDS)
                if not ready:
                    raise BenchmarkFailed(f"{len(left)} of {len(held)} sockets did not get a change.")
                for key, _ in ready:
                    if awaited in key.fileobj.recv(65536) and key.fileobj in left:
                        result.latencies_ms.append((time.perf_counter() - changed_at) * 1000)
                        left.remove(key.fileobj)
            pushes_ms.append((time.perf_counter() - changed_at) * 1000)
    result.seconds = time.perf_counter() - started_at
    return result
