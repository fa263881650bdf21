"""The HTTP server itself, spoken to byte by byte."""

import json
import signal
import socket
import time
from contextlib import suppress

import eventlet
import pytest
import requests
from eventlet import wsgi
from eventlet.event import Event

from gateway import Gateway
from gateway import server as server_module
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.servers import SECONDS_TO_END
from nameko_reliable.testing.waiting import wait_for
from nameko_reliable.web import protocol
from tests.infrastructure.feed import Feed


@pytest.fixture
def speak(shop):
    """`speak(b"…")` sends the bytes on a connection of its own and returns all that comes until it is closed."""

    def speak(*parts):
        with socket.create_connection(("127.0.0.1", shop.port), timeout=10) as connection:
            for part in parts:
                connection.sendall(part)
            received = b""
            try:
                while data := connection.recv(65536):
                    received += data
            except ConnectionResetError:
                pass
            return received

    return speak


def server_of(gateway):
    """The extension of a gateway's container."""
    return next(entrypoint for entrypoint in gateway.entrypoints if isinstance(entrypoint, server_module.WsgiServer))


def status_of(answer):
    return int(answer.split(b" ")[1])


LOGIN = b"POST /users/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /livez HTTP/9.9\r\n\r\n", 505),
        (b"GET /livez HTTP/x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.12\r\nHost: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\nHost: x\n\n", 400),
        (b"G\x1bT /livez HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n", 431),
        (b"GET /livez HTTP/1.1\r\n" + b"".join(b"X%d: %s\r\n" % (n, b"y" * 900) for n in range(90)) + b"\r\n", 431),
        (LOGIN + b"Content-Length: -1\r\n\r\n", 400),
        (LOGIN + b"Content-Length: +5\r\n\r\n{}   ", 400),
        (LOGIN + b"Content-Length: 1_0\r\n\r\n{}        ", 400),
        (LOGIN + b"Content-Length: x\r\n\r\n", 400),
        (LOGIN + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
        (LOGIN + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", 400),
        (LOGIN + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (LOGIN + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (LOGIN + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
        (LOGIN + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5000 + b"\r\n", 400),
        (LOGIN + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n", 400),
        (LOGIN + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 422),
        (LOGIN + b"Content-Length: 2\r\n\r\n{}", 422),
    ],
    ids=lambda value: repr(value[-50:]) if isinstance(value, bytes) else None,
)
def test_a_request_that_is_no_sound_http_is_refused(speak, request_bytes, status):
    answer = speak(request_bytes)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert status_of(answer) == status
    assert b"application/problem+json" in head
    assert b"Python" not in answer
    assert json.loads(body)["status"] == status


SECOND = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH = b"Content-Length: %d" % len(SECOND)
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (LENGTH.replace(b":", b" :"), SECOND),
        (b"garbage\r\n" + LENGTH, SECOND),
        (b"X\0: 1\r\n" + LENGTH, SECOND),
        (b"X Y: 1\r\n" + LENGTH, SECOND),
        (b"X\xe9: 1\r\n" + LENGTH, SECOND),
        (b": 1\r\n" + LENGTH, SECOND),
        (b"X: 1\r" + LENGTH, SECOND),
        (b"X: 1\n" + LENGTH, SECOND),
        (b"X: 1\r\n " + LENGTH, SECOND),
        (LENGTH + b"\x0b", SECOND),
        (CHUNKED.replace(b":", b" :"), b"0\r\n\r\n" + SECOND),
        (CHUNKED.replace(b"chunked", b"\x0bchunked"), b"0\r\n\r\n" + SECOND),
        (CHUNKED.replace(b"chunked", b"\xa0chunked"), b"0\r\n\r\n" + SECOND),
        (CHUNKED + b"\x1f", b"0\r\n\r\n" + SECOND),
        (CHUNKED, b"0x2\r\n{}\r\n0\r\n\r\n" + SECOND),
        (CHUNKED, b"+2\r\n{}\r\n0\r\n\r\n" + SECOND),
        (CHUNKED, b"0_2\r\n{}\r\n0\r\n\r\n" + SECOND),
        (CHUNKED, b"2\n{}\r\n0\r\n\r\n" + SECOND),
        (CHUNKED, b"2\r\n{}\n0\r\n\r\n" + SECOND),
        (CHUNKED, b"2\r\n{}abc\r\n0\r\n\r\n" + SECOND),
        (CHUNKED, b"2;\0\r\n{}\r\n0\r\n\r\n" + SECOND),
    ],
    ids=repr,
)
def test_a_proxy_cannot_see_other_requests_than_we_do(speak, head, body):
    """Where a body ends is beyond doubt, or nothing after its head is taken for a request."""
    answer = speak(
        b"POST /users/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + head + b"\r\n\r\n" + body
    )

    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1


def test_one_address_cannot_take_all_connections(run_gateway, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS_EACH", 3)
    gateway = run_gateway(RATE_LIMIT_SCALE="1")
    address = ("127.0.0.1", server_of(gateway.container).port)
    held = [socket.create_connection(address, timeout=10) for _ in range(3)]

    with socket.create_connection(address, timeout=10) as one_more:
        assert one_more.recv(1) == b""

    for connection in held:
        connection.close()
    wait_for(lambda: not server_of(gateway.container).listener.connections)
    assert requests.get(f"{gateway.url}/livez").status_code == 200


def test_a_trusted_proxy_may_have_more_connections(run_gateway, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS_EACH", 3)
    gateway = run_gateway(RATE_LIMIT_SCALE="1", TRUSTED_PROXIES="127.0.0.0/8")
    address = ("127.0.0.1", server_of(gateway.container).port)
    held = [socket.create_connection(address, timeout=10) for _ in range(5)]

    assert requests.get(f"{gateway.url}/livez").status_code == 200

    for connection in held:
        connection.close()


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"], ids=["none", "two"])
def test_a_request_names_one_host(speak, hosts):
    assert status_of(speak(b"GET /livez HTTP/1.1\r\nConnection: close\r\n" + hosts + b"\r\n")) == 400


@pytest.mark.parametrize("end", [b"", b" HTTP/1.1\r\n\r\n"], ids=["endless", "with an end"])
def test_a_request_line_of_more_than_64_kib_is_cut_off(speak, end):
    answer = speak(b"GET /livez?" + b"x" * 100_000 + end)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert status_of(answer) == json.loads(body)["status"] == 414
    assert b"application/problem+json" in head


@pytest.mark.parametrize("cut_off", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost"])
def test_a_client_that_leaves_in_the_middle_is_no_error(shop, speak, caplog, cut_off):
    with socket.create_connection(("127.0.0.1", shop.port)) as connection:
        connection.sendall(cut_off)

    assert requests.get(f"{shop.url}/livez").status_code == 200
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_body_that_is_cut_off_is_refused(shop):
    with socket.create_connection(("127.0.0.1", shop.port), timeout=10) as connection:
        connection.sendall(LOGIN + b'Content-Length: 100\r\n\r\n{"email"')
        connection.shutdown(socket.SHUT_WR)

        assert status_of(connection.recv(65536)) == 400


def test_the_head_of_a_request_has_to_come_in_time(speak, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)

    assert speak(b"GET /livez HTTP/1.1\r\n") == b""
    assert speak(b"GET") == b""


def test_drops_of_a_head_do_not_lengthen_its_time(shop, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", shop.port), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")

        with pytest.raises(OSError):
            for number in range(100):
                connection.sendall(b"X-%d: y\r\n" % number)
                time.sleep(0.05)


def test_a_body_has_to_come_in_time(speak, monkeypatch):
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.5)

    answer = speak(LOGIN + b"Content-Length: 100\r\n\r\n{")

    assert status_of(answer) == 400


@pytest.mark.parametrize("bytes_at_a_time", [0, 1])
def test_an_answer_has_to_be_read_in_time(shop, monkeypatch, bytes_at_a_time):
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.5)
    connections = server_of(shop.gateway).listener.connections
    before = set(connections)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", shop.port))
        slow.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        wait_for(lambda: connections - before)

        def is_rid_of_it():
            slow.recv(bytes_at_a_time)
            return not connections - before

        wait_for(is_rid_of_it)


def test_a_kept_connection_that_nobody_uses_is_closed(speak, monkeypatch):
    monkeypatch.setattr(protocol, "KEEPALIVE_SECONDS", 0.5)

    answer = speak(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")

    assert status_of(answer) == 200


def test_one_connection_serves_many_requests(speak):
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"

    answers = speak(request, request, request.replace(b"Host", b"Connection: close\r\nHost"))

    assert answers.count(b"HTTP/1.1 200") == 3


class Kitchen:
    """Answers in the name of the catalogue, once, when it is told to."""

    name = "products"

    orders_taken, may_serve = Event(), Event()

    @rpc
    def list_categories(self):
        self.orders_taken.send()
        self.may_serve.wait()
        return []


def test_a_stop_finishes_what_runs_and_ends_the_rest(config, run_service, caplog):
    gateway = run_service(Gateway)
    run_service(Kitchen)
    url = f"http://127.0.0.1:{config['GATEWAY_PORT']}"
    wait_for(lambda: requests.get(f"{url}/products/categories?warm=up").status_code == 422)
    idle = requests.Session()
    assert idle.get(f"{url}/livez").status_code == 200
    feed = Feed(f"{url.replace('http', 'ws')}/ws/notifications")
    assert feed.hear()["type"] == "connected"
    running = eventlet.spawn(requests.get, f"{url}/products/categories")
    Kitchen.orders_taken.wait()

    stopping = eventlet.spawn(gateway.stop)
    wait_for(lambda: not accepts(("127.0.0.1", int(config["GATEWAY_PORT"]))))
    Kitchen.may_serve.send()
    stopping.wait()

    assert running.wait().json() == []
    assert feed.closing_code() == 1001
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/livez")
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_stop_does_not_wait_for_ever_and_what_it_cuts_off_has_failed(config, run_service, monkeypatch, caplog):
    monkeypatch.setattr(server_module, "STOP_SECONDS", 0.5)
    gateway = run_service(Gateway)
    port = int(config["GATEWAY_PORT"])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(LOGIN + b"Content-Length: 100\r\n\r\n{")
        wait_for(lambda: [state for _, _, state in server_of(gateway).listener.connections] == [wsgi.STATE_REQUEST])

        with eventlet.Timeout(protocol.BODY_SECONDS / 2, AssertionError("the stop waits for the body")):
            gateway.stop()

        wait_for(lambda: "POST /users/login 500" in caplog.messages)


def test_a_second_signal_does_not_keep_a_stop_from_ending(config, processes):
    gateway = processes.start("gateway")
    address = ("127.0.0.1", int(config["GATEWAY_PORT"]))
    wait_for(lambda: accepts(address))
    with socket.create_connection(address) as connection:
        connection.sendall(LOGIN + b"Content-Length: 100\r\n\r\n{")
        gateway.send(signal.SIGTERM)
        wait_for(lambda: not accepts(address))

        gateway.send(signal.SIGTERM)

        # Until now it waits for the body.
        connection.shutdown(socket.SHUT_WR)
        assert gateway.process.wait(timeout=SECONDS_TO_END) == 0


def accepts(address):
    with suppress(ConnectionError), socket.create_connection(address):
        return True


def test_two_gateways_share_a_port_and_one_may_leave(config, run_service):
    first = run_service(Gateway)
    second = run_service(Gateway)
    url = f"http://127.0.0.1:{config['GATEWAY_PORT']}"

    first.stop()

    assert [requests.get(f"{url}/livez").status_code for _ in range(20)] == [200] * 20
    second.stop()


def test_a_taken_port_is_said_in_a_sentence():
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        server = server_module.WsgiServer()
        settings = {"GATEWAY_PORT": port, "RATE_LIMIT_SCALE": 1, "TRUSTED_PROXIES": ()}
        server.container = type("Container", (), {"config": settings})

        with pytest.raises(SystemExit, match=f"port {port} .*GATEWAY_PORT"):
            server.setup()
