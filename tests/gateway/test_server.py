"""The HTTP server itself, spoken to byte by byte."""

import json
import socket
import time

import eventlet
import pytest
import requests
import websocket

from extensions.rpc import rpc
from gateway import Gateway
from gateway import server as server_module
from tests.infrastructure.waiting import wait_for

from .conftest import Feed


@pytest.fixture
def speak(shop):
    """`speak(b"…")` sends the bytes on a connection of its own and returns all that comes until it is closed."""

    def speak(*parts, pause_seconds=0):
        with socket.create_connection(("127.0.0.1", shop.port), timeout=10) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_seconds)
            received = b""
            try:
                while data := connection.recv(65536):
                    received += data
            except ConnectionResetError:
                pass
            return received

    return speak


def status_of(answer):
    return int(answer.split(b" ")[1])


LOGIN = b"POST /users/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /livez HTTP/9.9\r\n\r\n", 505),
        (b"GET /livez HTTP/x\r\n\r\n", 400),
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


def test_an_endless_request_line_is_cut_off(speak):
    assert status_of(speak(b"GET /livez?" + b"x" * 100_000)) == 414


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
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.5)
    started_at = time.monotonic()

    assert speak(b"GET /livez HTTP/1.1\r\n") == b""
    assert speak(b"GET") == b""

    assert time.monotonic() - started_at < 3


def test_drops_of_a_head_do_not_lengthen_its_time(speak, monkeypatch):
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.5)
    started_at = time.monotonic()
    drops = (b"X-%d: y\r\n" % number for number in range(1000))

    with pytest.raises(OSError):
        speak(b"GET /livez HTTP/1.1\r\n", *drops, pause_seconds=0.05)

    assert time.monotonic() - started_at < 5


def test_a_body_has_to_come_in_time(speak, monkeypatch):
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.5)

    answer = speak(LOGIN + b"Content-Length: 100\r\n\r\n{")

    assert status_of(answer) == 400


def test_a_kept_connection_that_nobody_uses_is_closed(speak, monkeypatch):
    monkeypatch.setattr(server_module, "KEEPALIVE_SECONDS", 0.5)

    answer = speak(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")

    assert status_of(answer) == 200


def test_one_connection_serves_many_requests(speak):
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"

    answers = speak(request, request, request.replace(b"Host", b"Connection: close\r\nHost"))

    assert answers.count(b"HTTP/1.1 200") == 3


class Kitchen:
    """Answers in the name of the catalogue, after a while."""

    name = "products"

    @rpc
    def list_categories(self):
        time.sleep(2)
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
    eventlet.sleep(0.5)
    started_at = time.monotonic()

    gateway.stop()

    assert time.monotonic() - started_at < 5
    assert running.wait().json() == []
    opcode, data = feed.socket.recv_data()
    assert (opcode, int.from_bytes(data[:2], "big")) == (websocket.ABNF.OPCODE_CLOSE, 1001)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/livez")
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_stop_does_not_wait_for_ever(config, run_service, monkeypatch):
    monkeypatch.setattr(server_module, "STOP_SECONDS", 0.5)
    gateway = run_service(Gateway)
    port = int(config["GATEWAY_PORT"])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(LOGIN + b"Content-Length: 100\r\n\r\n{")
        eventlet.sleep(0.2)
        started_at = time.monotonic()

        gateway.stop()

        assert time.monotonic() - started_at < 3


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
        server.container = type("Container", (), {"config": {"GATEWAY_PORT": str(port)}})

        with pytest.raises(SystemExit, match=f"port {port} .*GATEWAY_PORT"):
            server.setup()


@pytest.mark.parametrize("port", ["", "http", "-1", "65536", None])
def test_a_port_that_is_none_is_said_in_a_sentence(port):
    server = server_module.WsgiServer()
    server.container = type("Container", (), {"config": {"GATEWAY_PORT": port}})

    with pytest.raises(SystemExit, match="GATEWAY_PORT"):
        server.setup()
