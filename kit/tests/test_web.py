"""nameko_reliable.web, tested byte by byte: the grammar of HTTP/1.1, deadlines, limits and stops."""

import json
import socket
import time
from types import SimpleNamespace

import eventlet
import pytest
from eventlet import wsgi
from eventlet.event import Event

from nameko_reliable.telemetry.tracing import Tracer
from nameko_reliable.testing.waiting import wait_for
from nameko_reliable.web import protocol
from nameko_reliable.web.listener import Listener
from nameko_reliable.web.server import HttpServer

GET = b"GET /cakes HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /cakes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


class Bakery:
    """An app that answers with the request's body, or with 400 if it could not read it."""

    answer_headers = {"X-Baker": "Ada"}

    def __call__(self, environ, start_response):
        try:
            status, body = "200 OK", environ["wsgi.input"].read()
        except (OSError, ValueError):
            status, body = "400 Bad Request", b""
        environ["route"] = "/cakes"
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]


@pytest.fixture
def serve():
    """`serve(app)` starts a server. `send(b"…")` returns all that it answers; `connect()` returns an open connection.

    Keyword arguments are the Listener's.
    """
    served = []

    def serve(app=None, *, max_connections=100, **options):
        listener = Listener("127.0.0.1", 0, max_connections=max_connections, timeout_seconds=30, **options)
        server = HttpServer(listener, app or Bakery(), service="bakery", tracer=Tracer())
        server.start(lambda run, identifier: eventlet.spawn(run), backlog=10)
        served.append(server)
        address = ("127.0.0.1", listener.port)

        def connect():
            return socket.create_connection(address, timeout=10)

        def send(*parts):
            """Send the parts on a new connection. Return everything received until the server closes it."""
            with connect() as connection:
                for part in parts:
                    connection.sendall(part)
                return read_all(connection)

        return SimpleNamespace(address=address, listener=listener, server=server, connect=connect, send=send)

    yield serve
    for server in served:
        server.stop(seconds=0)


def read_all(connection):
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def status_of(answer):
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /cakes HTTP/9.9\r\n\r\n", 505),
        (b"GET /cakes HTTP/x\r\n\r\n", 400),
        (b"GET /cakes HTTP/1.12\r\nHost: x\r\n\r\n", 400),
        (b"GET /cakes HTTP/1.1\nHost: x\n\n", 400),
        (b"G\x1bT /cakes HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /cakes HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /cakes HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /cakes?" + b"x" * 100_000, 414),
        # The client is still sending when the server refuses.
        (b"GET /cakes?" + b"x" * 5_000_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /cakes HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET /cakes HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n", 431),
        (b"GET /cakes HTTP/1.1\r\n" + b"".join(b"X%d: %s\r\n" % (n, b"y" * 900) for n in range(90)) + b"\r\n", 431),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: +5\r\n\r\n12345", 400),
        (POST + b"Content-Length: 1_0\r\n\r\n1234567890", 400),
        (POST + b"Content-Length: x\r\n\r\n", 400),
        (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n123", 400),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /cakes HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value[-50:]) if isinstance(value, bytes) else None,
)
def test_a_malformed_head_is_refused_with_problem_details(serve, request_bytes, status):
    answer = serve().send(request_bytes)

    head, _, body = answer.partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert status_of(answer) == problem["status"] == status
    assert b"Content-Type: application/problem+json\r\n" in head
    assert f"X-Request-ID: {problem['request_id']}\r\n".encode() in head
    assert b"X-Baker: Ada\r\n" in head
    assert b"Python" not in answer


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"Content-Length: 4\r\n\r\ncake", 200),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\ncake\r\n0\r\n\r\n", 200),
        (b"Transfer-Encoding: Chunked\r\n\r\n2;sweet\r\nca\r\n2\r\nke\r\n0\r\nX: y\r\n\r\n", 200),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\ncake\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5000 + b"\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n-4\r\ncake\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\ncake\r\n0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", 400),
    ],
    ids=lambda value: repr(value[-50:]) if isinstance(value, bytes) else None,
)
def test_the_app_reads_a_well_formed_body_and_gets_an_error_for_a_malformed_one(serve, body, status):
    answer = serve().send(POST + body)

    assert status_of(answer) == status
    assert answer.endswith(b"\r\n\r\ncake") == (status == 200)


LENGTH = b"Content-Length: %d" % len(GET)
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (LENGTH.replace(b":", b" :"), GET),
        (b"garbage\r\n" + LENGTH, GET),
        (b"X\0: 1\r\n" + LENGTH, GET),
        (b"X Y: 1\r\n" + LENGTH, GET),
        (b"X\xe9: 1\r\n" + LENGTH, GET),
        (b": 1\r\n" + LENGTH, GET),
        (b"X: 1\r" + LENGTH, GET),
        (b"X: 1\n" + LENGTH, GET),
        (b"X: 1\r\n " + LENGTH, GET),
        (LENGTH + b"\x0b", GET),
        (CHUNKED.replace(b":", b" :"), b"0\r\n\r\n" + GET),
        (CHUNKED.replace(b"chunked", b"\x0bchunked"), b"0\r\n\r\n" + GET),
        (CHUNKED.replace(b"chunked", b"\xa0chunked"), b"0\r\n\r\n" + GET),
        (CHUNKED + b"\x1f", b"0\r\n\r\n" + GET),
        (CHUNKED, b"0x2\r\n{}\r\n0\r\n\r\n" + GET),
        (CHUNKED, b"+2\r\n{}\r\n0\r\n\r\n" + GET),
        (CHUNKED, b"0_2\r\n{}\r\n0\r\n\r\n" + GET),
        (CHUNKED, b"2\n{}\r\n0\r\n\r\n" + GET),
        (CHUNKED, b"2\r\n{}\n0\r\n\r\n" + GET),
        (CHUNKED, b"2\r\n{}abc\r\n0\r\n\r\n" + GET),
        (CHUNKED, b"2;\0\r\n{}\r\n0\r\n\r\n" + GET),
    ],
    ids=repr,
)
def test_a_malformed_head_or_chunk_cannot_smuggle_a_request(serve, head, body):
    """In each body a proxy could see a second request, where the server refuses the first."""
    answer = serve().send(b"POST /cakes HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n" + body)

    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("head", "body", "answers"),
    [
        (LENGTH, GET, 2),
        (CHUNKED, b"20\r\n" + GET.ljust(32) + b"\r\n0\r\n\r\n", 2),
        (CHUNKED, b"2\r\n{}abc\r\n0\r\n\r\n", 1),
    ],
    ids=["length", "chunks", "malformed"],
)
def test_an_unread_body_is_discarded_or_if_malformed_ends_the_connection(serve, head, body, answers):
    def oven(environ, start_response):
        start_response("200 OK", [])
        return [b"cake"]

    answer = serve(oven).send(
        b"POST /cakes HTTP/1.1\r\nHost: x\r\n"
        + head
        + b"\r\n\r\n"
        + body
        + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )

    assert answer.count(b"HTTP/1.1 200") == answers


def test_one_connection_serves_many_requests(serve):
    answers = serve().send(GET, GET, GET.replace(b"Host", b"Connection: close\r\nHost"))

    assert answers.count(b"HTTP/1.1 200") == 3


def test_a_client_that_does_not_pause_does_not_stop_the_others(serve):
    served = []

    def oven(environ, start_response):
        served.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b"cake"]

    server = serve(oven)
    with server.connect() as hasty:
        hasty.sendall(GET * 200)
        server.send(GET.replace(b"cakes", b"bread").replace(b"Host", b"Connection: close\r\nHost"))

        assert served.index("/bread") < 100


def test_requests_are_logged_and_have_an_id_of_the_client_or_the_server(serve, caplog):
    server = serve()

    named = server.send(POST + b"X-Request-ID: order-1\r\n\r\n")
    unusable = server.send(POST + b"X-Request-ID: no name\r\n\r\n")

    assert b"X-Request-ID: order-1\r\n" in named
    assert b"X-Request-ID: " in unusable and b"no name" not in unusable
    assert caplog.messages.count("POST /cakes 200") == 2


@pytest.mark.parametrize("cut_off", [b"", b"GET /cakes HT", b"GET /cakes HTTP/1.1\r\nHost"])
def test_a_client_that_leaves_in_the_middle_of_a_head_is_not_logged_as_an_error(serve, caplog, cut_off):
    server = serve()
    with server.connect() as connection:
        connection.sendall(cut_off)

    wait_for(lambda: not server.listener.connections)
    assert status_of(server.send(POST + b"\r\n")) == 200
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@pytest.mark.parametrize("begun", [b"GET", b"GET /cakes HTTP/1.1\r\n"])
def test_the_head_of_a_request_has_a_deadline(serve, monkeypatch, begun):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)

    assert serve().send(begun) == b""


def test_a_head_that_comes_line_by_line_has_the_same_deadline(serve, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with serve().connect() as connection:
        connection.sendall(b"GET /cakes HTTP/1.1\r\n")

        with pytest.raises(OSError):
            for number in range(100):
                connection.sendall(b"X-%d: y\r\n" % number)
                time.sleep(0.05)


def test_a_body_has_a_deadline(serve, monkeypatch):
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.5)

    assert status_of(serve().send(POST + b"Content-Length: 100\r\n\r\n{")) == 400


def test_an_idle_connection_is_closed(serve, monkeypatch):
    monkeypatch.setattr(protocol, "KEEPALIVE_SECONDS", 0.5)

    assert status_of(serve().send(GET)) == 200


@pytest.mark.parametrize("bytes_at_a_time", [0, 1])
def test_reading_an_answer_has_a_deadline(serve, monkeypatch, bytes_at_a_time):
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.5)

    def oven(environ, start_response):
        start_response("200 OK", [])
        return [bytes(20_000_000)]

    server = serve(oven)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(server.address)
        slow.sendall(GET)
        wait_for(lambda: server.listener.connections)

        def is_closed():
            slow.recv(bytes_at_a_time)
            return not server.listener.connections

        wait_for(is_closed)


def test_an_address_has_a_maximum_of_connections(serve):
    server = serve(max_per_address=2)
    held = [server.connect() for _ in range(2)]

    with server.connect() as one_more:
        assert one_more.recv(1) == b""

    held.pop().close()
    wait_for(lambda: len(server.listener.connections) == 1)
    assert status_of(server.send(POST + b"\r\n")) == 200
    held.pop().close()


def test_an_exempt_address_has_no_maximum_of_connections(serve):
    server = serve(max_per_address=1, is_exempt=lambda host: host == "127.0.0.1")

    with server.connect(), server.connect():
        assert status_of(server.send(POST + b"\r\n")) == 200


def test_clients_beyond_the_maximum_of_all_connections_wait(serve):
    server = serve(max_connections=1)
    held = server.connect()
    wait_for(lambda: server.listener.connections)
    with server.connect() as waiting:
        waiting.sendall(POST + b"\r\n")
        waiting.settimeout(0.3)
        with pytest.raises(TimeoutError):
            waiting.recv(1)

        held.close()

        waiting.settimeout(10)
        assert status_of(read_all(waiting)) == 200


def test_an_error_of_the_app_does_not_affect_other_connections(serve, caplog):
    def oven(environ, start_response):
        if environ["PATH_INFO"] == "/burn":
            raise ZeroDivisionError("burnt")
        start_response("200 OK", [])
        return [b"cake"]

    server = serve(oven)

    assert status_of(server.send(GET.replace(b"cakes", b"burn"))) == 500
    assert status_of(server.send(POST + b"\r\n")) == 200
    assert "the app failed" in caplog.messages


class Oven:
    """An app that answers when the test lets it."""

    def __init__(self):
        self.is_hot, self.may_serve, self.is_going_away = Event(), Event(), False

    def __call__(self, environ, start_response):
        self.is_hot.send()
        self.may_serve.wait()
        start_response("200 OK", [])
        return [b"cake"]

    def going_away(self):
        self.is_going_away = True


def test_a_stop_finishes_running_requests_and_closes_idle_connections(serve):
    oven = Oven()
    server = serve(oven)
    idle, running = server.connect(), server.connect()
    running.sendall(GET)
    oven.is_hot.wait()

    stopping = eventlet.spawn(server.server.stop, seconds=60)
    wait_for(lambda: oven.is_going_away)
    oven.may_serve.send()
    with eventlet.Timeout(10, AssertionError("the stop waits for the idle connection")):
        stopping.wait()

    answer = read_all(running)
    assert status_of(answer) == 200
    assert b"Connection: close\r\n" in answer
    assert read_all(idle) == b""
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_a_stop_cuts_off_requests_that_take_longer(serve, caplog):
    server = serve()
    with server.connect() as connection:
        connection.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        wait_for(lambda: [state for _, _, state in server.listener.connections] == [wsgi.STATE_REQUEST])

        with eventlet.Timeout(protocol.BODY_SECONDS / 2, AssertionError("the stop waits for the body")):
            server.server.stop(seconds=0.5)

        wait_for(lambda: "POST /cakes 500" in caplog.messages)
    assert "1 requests were cut off by the stop" in caplog.messages


def test_two_listeners_share_a_port_when_both_allow_it(serve):
    first = serve(shares_port=True)
    second = Listener("127.0.0.1", first.listener.port, max_connections=1, timeout_seconds=1, shares_port=True)
    second.close()

    with pytest.raises(OSError):
        Listener("127.0.0.1", first.listener.port, max_connections=1, timeout_seconds=1)
