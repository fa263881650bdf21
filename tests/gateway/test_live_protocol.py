"""Invalid messages and frames to the WebSocket feed.

A readable message gets an answer, a protocol error closes the socket with its code, and no client gets another user's
news. Frames are made by hand, as no client library sends invalid ones.
"""

import json
import struct
from contextlib import contextmanager, suppress
from itertools import count, pairwise

import jwt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from websocket import WebSocketException

from contracts.notifications import NotificationCreated
from gateway.live import MAX_MESSAGE_BYTES, MAX_WATCHED
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.feed import Feed

from .conftest import provider

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 0x1, 0x2, 0x8, 0x9, 0xA, 0x0
PROTOCOL_ERROR, INVALID_UTF8, TOO_BIG = 1002, 1007, 1009
MASK = b"\x0f\xf0\x55\xaa"
numbers = count(1)
example_settings = settings(max_examples=100, derandomize=True, database=None)


def frame(opcode, payload=b"", *, is_last=True, reserved_bits=0, is_masked=True, length=None):
    """A client's frame. length: (struct format, number), to claim another length than the payload's."""
    first = is_last << 7 | reserved_bits << 4 | opcode
    if length is None:
        size = len(payload)
        length = ("B", size) if size < 126 else ("H", size) if size < 2**16 else ("Q", size)
    kind, number = length
    head = struct.pack("!B", first) + struct.pack(
        {"B": "!B", "H": "!BH", "Q": "!BQ"}[kind],
        *([is_masked << 7 | number] if kind == "B" else [is_masked << 7 | {"H": 126, "Q": 127}[kind], number]),
    )
    if not is_masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))


def fragments(opcode, payload, cuts):
    """The frames of one fragmented message."""
    bounds = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    parts = [payload[start:end] for start, end in pairwise(bounds)]
    last = len(parts) - 1
    return [frame(opcode if n == 0 else CONTINUATION, part, is_last=n == last) for n, part in enumerate(parts)]


# Messages, as (frames, types of the answers)


def message_frame(message, kind):
    return frame(TEXT, json.dumps(message).encode()), [kind] if kind else []


VALID_PING = message_frame({"type": "ping"}, "pong")
names = st.text(max_size=8) | st.just("type")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=15,
)
invalid_ids = json_values.filter(lambda value: not isinstance(value, list)) | st.lists(json_values, min_size=1).filter(
    lambda ids: any(type(id) is not int or not 0 < id < 2**63 for id in ids)
)
huge_texts = st.sampled_from(
    [
        "x" * 60_000,
        "[" * 60_000,
        '{"type":' * 7_000,
        '{"type": "ping", "a": ' + "[" * 20_000 + "]" * 20_000 + "}",
        "9" * 60_000,
        json.dumps({"type": "watch", "product_ids": list(range(1, MAX_WATCHED + 2))}),
        json.dumps({"type": "authenticate", "token": "a." * 30_000}),
    ]
)


@st.composite
def forged_tokens(draw):
    claims = draw(
        st.fixed_dictionaries(
            {"sub": st.sampled_from(["1", "2", "3", "0", "x"]), "role": st.sampled_from(["customer", "admin"])},
            optional={"exp": st.just(2**40), "iat": st.just(0), "jti": st.text(max_size=5), "email": st.just("a@b.cc")},
        )
    )
    algorithm = draw(st.sampled_from(["none", "HS256", "HS512"]))
    key = None if algorithm == "none" else "a forger's key, of more than 64 bytes, so that any algorithm accepts it"
    return jwt.encode(claims, key, algorithm)


def is_unknown_message(text):
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return True
    return not isinstance(message, dict) or message.get("type") not in ("ping", "authenticate", "watch")


small_texts = (
    st.text(max_size=200) | json_values.map(json.dumps) | st.fixed_dictionaries({"type": json_values}).map(json.dumps)
).filter(is_unknown_message)
cuts = st.lists(st.integers(0, 10_000), max_size=4)
harmless = st.one_of(
    st.just(VALID_PING),
    st.just(message_frame({"type": "watch", "product_ids": [2**62]}, None)),
    (small_texts | huge_texts).map(lambda text: (frame(TEXT, text.encode()), ["error"])),
    invalid_ids.map(lambda ids: message_frame({"type": "watch", "product_ids": ids}, "error")),
    (json_values | forged_tokens()).map(lambda token: message_frame({"type": "authenticate", "token": token}, "error")),
    st.binary(max_size=200).map(lambda data: (frame(BINARY, data), ["error"])),
    st.binary(max_size=125).map(lambda data: (frame(PONG, data), [])),
    st.binary(max_size=125).map(lambda data: (frame(PING, data), [])),
    st.tuples(small_texts, cuts).map(lambda it: (b"".join(fragments(TEXT, it[0].encode(), it[1])), ["error"])),
    # A control frame may come between the fragments of a message.
    st.tuples(cuts, st.binary(max_size=125)).map(
        lambda it: (frame(PING, it[1]).join(fragments(TEXT, b'{"type": "ping"}', it[0])), ["pong"])
    ),
)
PROTOCOL_ERRORS = {
    "a frame without a mask": (PROTOCOL_ERROR, frame(TEXT, b'{"type": "ping"}', is_masked=False)),
    "an unknown opcode": (PROTOCOL_ERROR, frame(0x3, b"x")),
    "an unknown control opcode": (PROTOCOL_ERROR, frame(0xB)),
    "a reserved bit": (PROTOCOL_ERROR, frame(TEXT, b"x", reserved_bits=4)),
    "invalid UTF-8": (INVALID_UTF8, frame(TEXT, b"\xff\xfe")),
    "half a character": (INVALID_UTF8, frame(TEXT, "🍄".encode()[:2])),
    "half a surrogate pair": (INVALID_UTF8, frame(TEXT, "\ud83c".encode(errors="surrogatepass"))),
    "a continuation without a message": (PROTOCOL_ERROR, frame(CONTINUATION, b"x")),
    "a message inside another": (PROTOCOL_ERROR, frame(TEXT, b"x", is_last=False) + frame(TEXT, b"x")),
    "a ping that is too long": (PROTOCOL_ERROR, frame(PING, b"x" * 126)),
    "a fragmented ping": (PROTOCOL_ERROR, frame(PING, b"x", is_last=False)),
    "a negative length": (PROTOCOL_ERROR, frame(TEXT, b"x", length=("Q", 2**63))),
    "a length in too many bytes": (PROTOCOL_ERROR, frame(TEXT, b"x", length=("Q", 1))),
    "a close frame of one byte": (PROTOCOL_ERROR, frame(CLOSE, b"x")),
    "a close frame with a reserved code": (PROTOCOL_ERROR, frame(CLOSE, struct.pack("!H", 1005))),
    "a close frame with a code below 1000": (PROTOCOL_ERROR, frame(CLOSE, struct.pack("!H", 999))),
    "a close frame with invalid UTF-8": (INVALID_UTF8, frame(CLOSE, struct.pack("!H", 1000) + b"\xff")),
    "a message that is too big": (TOO_BIG, frame(TEXT, b"x" * (MAX_MESSAGE_BYTES + 1))),
    "binary data that are too big": (TOO_BIG, frame(BINARY, b"x" * (MAX_MESSAGE_BYTES + 1))),
    "too much of a huge message": (
        TOO_BIG,
        frame(TEXT, b"x" * (MAX_MESSAGE_BYTES + 1), length=("Q", 2**40)),
    ),
    "a fragmented message that is too big": (
        TOO_BIG,
        b"".join(fragments(TEXT, b"x" * (MAX_MESSAGE_BYTES + 1), range(0, 9000, 90))),
    ),
    "a normal close": (1000, frame(CLOSE, struct.pack("!H", 1000) + b"bye")),
    "a close with a private code": (4321, frame(CLOSE, struct.pack("!H", 4321))),
}


class RawFeed(Feed):
    """An anonymous client that sends raw bytes."""

    def send_bytes(self, data):
        self.socket.sock.sendall(data)

    def receive_types(self, count):
        """The types of the next `count` messages."""
        return [self.receive()["type"] for _ in range(count)]


@pytest.fixture(scope="module")
def live_feed(shop):
    return provider(shop.gateway, "live_feed")


@pytest.fixture(scope="module")
def bystander(shop, new_customer):
    """The feed of a customer, `user_id`, connected during the whole module. It only listens, as its messages count."""
    customer = new_customer()
    feed = Feed(shop.ws_url, header=[f"Authorization: Bearer {customer.token}"])
    feed.user_id = customer.user["id"]
    assert [feed.receive()["type"], feed.receive()["type"]] == ["connected", "authenticated"]
    feed.watch({"id": 2**62})
    yield feed
    feed.close()


@pytest.fixture(scope="module")
def connect(shop, live_feed):
    """`with connect() as client:` opens a socket. After the block the gateway has removed it."""

    @contextmanager
    def connect():
        before = set(live_feed._clients)
        client = RawFeed(shop.ws_url)
        assert client.receive()["type"] == "connected"
        yield client
        with suppress(OSError, WebSocketException):
            client.socket.sock.close()
        wait_for(lambda: not live_feed._clients - before)

    return connect


@pytest.fixture(autouse=True)
def nothing_goes_wrong(caplog):
    yield
    assert not [record for record in caplog.records if record.exc_info]


def is_undisturbed(bystander, live_feed):
    """Whether the next message to the bystander is a notification of their own."""
    about = {"event_type": "order_confirmation", "subject": "Thanks", "message": "It is on its way."}
    about |= {"order_id": 1, "sequence": 1}
    number = next(numbers)
    live_feed.push_notification(NotificationCreated(id=number, user_id=bystander.user_id, **about))
    return bystander.receive()["data"]["id"] == number


@example_settings
@given(steps=st.lists(harmless, max_size=15))
def test_invalid_messages_are_answered_in_order_without_other_users_news(connect, live_feed, bystander, steps):
    expected = [kind for _, kinds in steps for kind in kinds]
    with connect() as client:
        client.send_bytes(b"".join(data for data, _ in steps))
        assert client.receive_types(len(expected)) == expected

        assert is_undisturbed(bystander, live_feed)
        client.send_bytes(VALID_PING[0])
        assert client.receive_types(1) == ["pong"]


@pytest.mark.parametrize("case", PROTOCOL_ERRORS)
# Not shrunk, as each missing code is waited for.
@settings(example_settings, max_examples=10, phases=[Phase.generate])
@given(steps=st.lists(harmless, max_size=5))
def test_a_protocol_error_closes_the_socket_with_its_code(connect, live_feed, bystander, case, steps):
    code, data = PROTOCOL_ERRORS[case]
    with connect() as client:
        client.send_bytes(b"".join(frames for frames, _ in steps) + data)

        assert client.closing_code() == code
        assert is_undisturbed(bystander, live_feed)


@example_settings
@given(steps=st.lists(harmless, max_size=5), rest=st.binary(max_size=300), is_cut=st.booleans())
def test_a_stream_cut_at_any_byte_is_cleaned_up(connect, live_feed, bystander, steps, rest, is_cut):
    data = b"".join(data for data, _ in steps)
    with connect() as client:
        client.send_bytes(data[: len(data) * len(rest) // 300] if is_cut else data + rest)

    assert is_undisturbed(bystander, live_feed)
