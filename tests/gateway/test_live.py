import json
import socket
import time
from itertools import pairwise

import eventlet
import pytest
import websocket
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.products import ProductChanged
from gateway import live as live_module
from gateway.live import ClientSocket, FrameCounter
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.feed import Feed

from .conftest import problem, provider


@pytest.fixture
def live_feed(shop):
    return provider(shop.gateway, "live_feed")


def order(customer, product):
    return customer.post("/orders", {"items": [{"product_id": product["id"], "quantity": 1}]}).json()


def test_a_client_is_greeted_and_may_ping(open_feed):
    feed = open_feed()

    feed.send(type="ping")

    assert feed.receive_until("pong") == {"type": "pong"}


def test_a_user_authenticated_by_header_gets_their_notification(customer, open_feed, new_product):
    product = new_product()
    feed = open_feed(customer.token)

    placed = order(customer, product)

    push = feed.receive_until("notification")
    assert push["data"].keys() == {"id", "event_type", "subject", "message", "order_id", "sequence", "timestamp"}
    assert (push["data"]["event_type"], push["data"]["order_id"]) == ("order_confirmation", placed["id"])
    assert push["data"]["sequence"] == 1
    assert push["data"]["timestamp"].endswith("Z")
    kept = customer.get(f"/notifications/{push['data']['id']}").json()
    assert (kept["subject"], kept["message"]) == (push["data"]["subject"], push["data"]["message"])


def test_a_user_authenticated_by_message_gets_status_updates(customer, admin, open_feed, new_product):
    placed = order(customer, new_product())
    feed = open_feed()
    feed.send(type="authenticate", token=customer.token)
    assert feed.receive_until("authenticated") == {"type": "authenticated", "user_id": customer.user["id"]}

    admin.patch(f"/orders/{placed['id']}/status", {"status": "confirmed"})

    kinds = {feed.receive_until("notification")["data"]["event_type"]}
    while "order_status_update" not in kinds:
        kinds.add(feed.receive_until("notification")["data"]["event_type"])


def test_other_clients_get_no_notification_of_an_order(customer, new_customer, admin, open_feed, new_product):
    product = new_product()
    own, stranger, boss, anonymous = (
        open_feed(token) for token in (customer.token, new_customer().token, admin.token, None)
    )
    for feed in (stranger, boss, anonymous):
        feed.watch()

    order(customer, product)

    own.receive_until("notification")
    for feed in (stranger, boss, anonymous):
        assert feed.receives_nothing_more()


def test_all_sockets_of_a_user_get_the_notification(customer, open_feed, new_product):
    feeds = [open_feed(customer.token) for _ in range(3)]

    order(customer, new_product())

    assert len({feed.receive_until("notification")["data"]["id"] for feed in feeds}) == 1


def test_every_client_gets_a_product_change(admin, open_feed, new_product):
    product = new_product(price="3.00", stock_quantity=5)
    feed = open_feed()

    admin.patch(f"/products/{product['id']}", {"price": "3.50", "is_active": False})

    def latest_change():
        data = feed.receive_until("product")["data"]
        return data if data["id"] == product["id"] and data["price"] == "3.50" else None

    data = wait_for(latest_change)
    revision = data.pop("revision")
    assert data == {"id": product["id"], "price": "3.50", "stock_quantity": 5, "is_active": False}
    assert isinstance(revision, int)


def test_a_watching_client_gets_only_changes_of_the_watched_products(shop, open_feed, new_product):
    watched, other = new_product(), new_product()
    feed = open_feed()
    feed.watch(other)
    feed.watch(watched)

    shop.rpc.products.set_stock(product_id=other["id"], stock_quantity=1)
    shop.rpc.products.set_stock(product_id=watched["id"], stock_quantity=2)

    # The event of its creation may still arrive.
    wait_for(lambda: feed.receive_until("product")["data"]["stock_quantity"] == 2)
    assert feed.receives_nothing_more()


@pytest.mark.parametrize(
    "message",
    [
        "",
        "hello",
        "{",
        "[]",
        "3",
        "null",
        '"ping"',
        "[" * 60_000,
        "9" * 5000,
        '{"type": null}',
        '{"type": ["ping"]}',
        '{"type": {"a": 1}}',
        '{"type": "subscribe"}',
        '{"type": "authenticate"}',
        '{"type": "authenticate", "token": 3}',
        '{"type": "authenticate", "token": {"a": 1}}',
        '{"type": "authenticate", "token": "a.b.c"}',
        '{"type": "authenticate", "token": "\\ud800"}',
        '{"type": "watch"}',
        '{"type": "watch", "product_ids": 3}',
        '{"type": "watch", "product_ids": ["1"]}',
        '{"type": "watch", "product_ids": [true]}',
        '{"type": "watch", "product_ids": [1.5]}',
        '{"type": "watch", "product_ids": [0]}',
        '{"type": "watch", "product_ids": [9223372036854775808]}',
        json.dumps({"type": "watch", "product_ids": list(range(1, 202))}),
        b"\x00\xff",
        b'{"type": "ping"}',
    ],
    ids=lambda message: repr(message[:40]),
)
def test_an_invalid_message_gets_an_error_and_the_socket_stays_open(open_feed, caplog, message):
    feed = open_feed()
    feed.watch()

    feed.socket.send(message) if isinstance(message, str) else feed.socket.send_binary(message)

    error = feed.receive()
    assert error.keys() == {"type", "detail"}
    assert error["type"] == "error"
    assert feed.receives_nothing_more()
    assert not [record for record in caplog.records if record.exc_info]


def test_a_bad_token_in_the_handshake_leaves_the_client_anonymous(new_feed, customer):
    feed = new_feed(header=["Authorization: Bearer nonsense"])

    assert feed.receive()["type"] == "connected"
    assert feed.receive()["type"] == "error"
    feed.send(type="authenticate", token=customer.token)
    assert feed.receive_until("authenticated")["user_id"] == customer.user["id"]


def test_a_client_is_anonymous_after_its_token_expires(customer, open_feed, new_token, new_product):
    control = open_feed(customer.token)
    feed = open_feed(new_token(sub=str(customer.user["id"]), exp=int(time.time()) + 3))

    assert feed.receive() == {"type": "expired"}

    feed.watch()
    order(customer, new_product())
    control.receive_until("notification")

    assert feed.receives_nothing_more()


def test_a_client_may_authenticate_as_another_user(customer, new_customer, open_feed, new_product):
    feed, other = open_feed(customer.token), new_customer()
    feed.send(type="authenticate", token=other.token)
    assert feed.receive_until("authenticated")["user_id"] == other.user["id"]
    control = open_feed(customer.token)
    feed.watch()

    order(customer, new_product())
    control.receive_until("notification")

    assert feed.receives_nothing_more()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://shop.example"])
def test_a_foreign_origin_is_refused_before_the_upgrade(shop, origin):
    with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
        websocket.create_connection(shop.ws_url, origin=origin)

    assert refusal.value.status_code == 403
    assert json.loads(refusal.value.resp_body)["type"] == "foreign-origin"


@pytest.mark.parametrize("origin", ["http://shop.example:8080", "https://third.example", "http://{host}"])
def test_the_shops_own_origins_may_connect(shop, open_feed, origin):
    open_feed(origin=origin.format(host=shop.url.removeprefix("http://")))


def test_options_with_an_upgrade_lists_the_methods(anonymous):
    answer = anonymous.request(
        "OPTIONS", "/ws/notifications", headers={"Connection": "Upgrade", "Upgrade": "websocket"}
    )

    assert answer.status_code == 200
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


def test_a_plain_request_is_asked_to_upgrade(anonymous):
    answer = anonymous.get("/ws/notifications")

    assert answer.status_code == 426
    assert answer.headers["Upgrade"] == "websocket"
    assert problem(answer)["type"] == "upgrade-required"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "7"},
    ],
)
def test_a_broken_handshake_is_malformed(anonymous, headers):
    answer = anonymous.get("/ws/notifications", headers={"Connection": "Upgrade", "Upgrade": "websocket"} | headers)

    assert answer.status_code == 400
    assert problem(answer)["type"] == "malformed-request"


def test_an_oversized_message_closes_the_socket_with_its_code(open_feed, live_feed):
    feed = open_feed()
    # Other clients' changes may arrive at any time.
    live_feed.push_product(ProductChanged(id=2**62, price=1, stock_quantity=1, is_active=True, revision=1))

    feed.socket.send("x" * (live_module.MAX_MESSAGE_BYTES + 1))

    assert feed.closing_code() == 1009


def test_invalid_frames_close_the_socket(open_feed, live_feed):
    before = set(live_feed._clients)
    feed = open_feed()

    feed.socket.sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)))

    wait_for(lambda: not live_feed._clients - before)


def test_a_client_that_does_not_answer_pings_is_closed(open_feed, live_feed, monkeypatch):
    monkeypatch.setitem(live_module.SOCKET_OPTIONS, "ping_interval", 0.3)
    before = set(live_feed._clients)
    silent = open_feed()

    wait_for(lambda: not live_feed._clients - before)

    # Product messages may come first.
    opcodes = iter(lambda: silent.socket.recv_data(control_frame=True)[0], websocket.ABNF.OPCODE_CLOSE)
    assert websocket.ABNF.OPCODE_PING in list(opcodes)


def test_a_client_that_answers_pings_stays_connected(open_feed, monkeypatch):
    monkeypatch.setitem(live_module.SOCKET_OPTIONS, "ping_interval", 1)
    feed = open_feed()
    feed.watch()

    # The second ping comes once the first is answered, which the client library does.
    opcodes = [feed.socket.recv_data(control_frame=True)[0] for _ in range(2)]

    assert opcodes == [websocket.ABNF.OPCODE_PING] * 2
    assert feed.receives_nothing_more()


def test_a_slow_reader_is_dropped_and_blocks_no_other_client(open_feed, live_feed, monkeypatch):
    monkeypatch.setattr(live_module, "SEND_SECONDS", 600)
    monkeypatch.setattr(live_module, "SEND_BUFFER_BYTES", 4096)
    before = set(live_feed._clients)
    open_feed(sockopt=((socket.SOL_SOCKET, socket.SO_RCVBUF, 4096),))
    slow = next(iter(live_feed._clients - before))
    quick = open_feed()
    event = ProductChanged(id=2**62, price=1, stock_quantity=1, is_active=True, revision=1)

    # After PING_SECONDS it would be dropped because it answers no ping.
    with eventlet.Timeout(live_module.PING_SECONDS, AssertionError("the slow reader blocks")):
        while slow in live_feed._clients:
            live_feed.push_product(event)
            assert quick.receive_until("product")


def send_at_once(feed, count):
    for _ in range(count):
        feed.send(type="ping")


def test_a_burst_of_messages_is_answered(open_feed):
    feed = open_feed()
    feed.watch()

    # Two messages were sent by watch().
    send_at_once(feed, live_module.MAX_BURST - 2)

    assert [feed.receive()["type"] for _ in range(live_module.MAX_BURST - 2)] == ["pong"] * (live_module.MAX_BURST - 2)


def test_a_client_over_the_message_rate_gets_an_error_and_is_closed(open_feed, live_feed):
    before = set(live_feed._clients)
    feed = open_feed()

    send_at_once(feed, 3 * live_module.MAX_BURST)

    assert "messages a second" in feed.receive_until("error")["detail"]
    assert feed.closing_code() == 1008
    wait_for(lambda: not live_feed._clients - before)


MASK = bytes(4)
PING, PONG, CONTINUATION = (bytes([first, 0x80]) + MASK for first in (0x89, 0x8A, 0x00))
MESSAGE = json.dumps({"type": "ping"}).encode()
WHOLE_MESSAGE = bytes([0x81, 0x80 | len(MESSAGE)]) + MASK + MESSAGE


@pytest.mark.parametrize(
    ("begin", "flood", "end"),
    [
        (b"", PING, WHOLE_MESSAGE),
        (b"", PONG, WHOLE_MESSAGE),
        (bytes([0x01, 0x80]) + MASK, CONTINUATION, bytes([0x80, 0x80 | len(MESSAGE)]) + MASK + MESSAGE),
    ],
    ids=["pings", "pongs", "parts of a message"],
)
def test_a_flood_of_small_frames_is_throttled_and_blocks_no_other_client(open_feed, begin, flood, end):
    seconds = 1
    frames = live_module.MAX_FRAME_BURST + live_module.FRAMES_PER_SECOND * seconds
    flooder, other = open_feed(), open_feed()
    started_at = time.monotonic()

    flooder.socket.sock.sendall(begin + flood * frames + end)

    answer = eventlet.spawn(flooder.receive_until, "pong")
    other.send(type="ping")
    assert other.receive_until("pong")
    assert not answer.dead
    assert answer.wait()
    assert time.monotonic() - started_at >= seconds


def test_a_client_that_sends_single_bytes_is_throttled(monkeypatch):
    monkeypatch.setattr(live_module, "MAX_FRAME_BURST", 3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = ClientSocket(ours, {})
        theirs.sendall(bytes([0x82, 0x80 | 125]) + MASK + bytes(125))
        started_at = time.monotonic()

        for _ in range(53):
            client.recv(1)

        assert time.monotonic() - started_at >= 50 / live_module.FRAMES_PER_SECOND


@settings(derandomize=True, database=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 125, 126, 127, 2**16 - 1, 2**16, 2**16 + 1])),
    cuts=st.lists(st.integers(0, 2**16)),
)
def test_frames_are_counted_however_the_stream_is_split(sizes, cuts):
    def head(size):
        if size < 126:
            return bytes([0x82, 0x80 | size])
        return bytes([0x82, 0xFE]) + size.to_bytes(2) if size < 2**16 else bytes([0x82, 0xFF]) + size.to_bytes(8)

    # Bytes of a payload that look like a header are not counted.
    stream = b"".join(head(size) + MASK + b"\x89\x80" * (size // 2) + b"\x89" * (size % 2) for size in sizes)
    bounds = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    frames = FrameCounter()

    assert sum(frames.count_in(stream[start:end]) for start, end in pairwise(bounds)) == len(sizes)


def test_a_client_may_send_again_after_a_pause(open_feed, monkeypatch):
    monkeypatch.setattr(live_module, "MAX_BURST", 3)
    monkeypatch.setattr(live_module, "MESSAGES_PER_SECOND", 1_000_000)
    feed = open_feed()
    feed.watch()

    for _ in range(50):
        feed.send(type="ping")
        assert feed.receive_until("pong")


def test_a_user_has_a_limited_number_of_sockets_however_they_authenticate(customer, new_feed, open_feed, live_feed):
    most = live_module.MAX_USER_SOCKETS
    feeds = [open_feed(customer.token) for _ in range(most)]

    late = open_feed()
    late.send(type="authenticate", token=customer.token)
    late_by_header = new_feed(header=[f"Authorization: Bearer {customer.token}"])

    for feed in (late, late_by_header):
        assert str(most) in feed.receive_until("error")["detail"]
    assert len(live_feed._of_user[customer.user["id"]]) == most
    late_by_header.close()
    # An authenticated socket may send a newer token.
    feeds[0].send(type="authenticate", token=customer.token)
    assert feeds[0].receive_until("authenticated")
    feeds[0].close()
    wait_for(lambda: len(live_feed._of_user[customer.user["id"]]) < most)
    late.send(type="authenticate", token=customer.token)
    assert late.receive_until("authenticated")


def test_sockets_over_the_total_limit_are_refused_before_the_upgrade(shop, open_feed, monkeypatch):
    open_feed()
    monkeypatch.setattr(live_module, "MAX_SOCKETS", 1)

    with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
        websocket.create_connection(shop.ws_url)

    assert refusal.value.status_code == 503
    assert refusal.value.resp_headers["retry-after"]
    assert json.loads(refusal.value.resp_body)["type"] == "overloaded"


def test_an_address_has_a_limited_number_of_sockets(run_gateway):
    gateway = run_gateway(RATE_LIMIT_SCALE="0.01", TRUSTED_PROXIES="127.0.0.1")

    def open_from(address):
        return Feed(gateway.ws_url, header=[f"X-Forwarded-For: {address}"])

    feeds = [open_from(address) for address in ("2001:db8::1", "2001:db8::2")]
    with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
        open_from("2001:db8::3")
    feeds.append(open_from("203.0.113.1"))

    assert refusal.value.status_code == 503
    assert json.loads(refusal.value.resp_body)["type"] == "overloaded"
    feeds.pop(0).close()
    live_feed = provider(gateway.container, "live_feed")
    wait_for(lambda: live_feed._of_address == {"2001:db8::/64": 1, "203.0.113.1": 1})
    feeds.append(open_from("2001:db8::3"))
    for feed in feeds:
        feed.close()
    wait_for(lambda: live_feed._of_address == {})


def test_closed_sockets_are_forgotten(customer, open_feed, live_feed):
    before = set(live_feed._clients)
    feed = open_feed(customer.token)
    assert live_feed._clients - before

    feed.close()

    wait_for(lambda: not live_feed._clients - before and customer.user["id"] not in live_feed._of_user)
