"""The gateway as an HTTP server, on raw sockets. kit/tests/test_web.py tests what holds for any app."""

import json
import signal
import socket
from contextlib import suppress

import eventlet
import pytest
import requests
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
    """`speak(b"…")` sends the bytes on a new connection and returns everything received until it is closed."""

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
    """The WsgiServer of a gateway's container."""
    return next(entrypoint for entrypoint in gateway.entrypoints if isinstance(entrypoint, server_module.WsgiServer))


def status_of(answer):
    return int(answer.split(b" ")[1])


LOGIN = b"POST /users/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (LOGIN + b"Content-Length: -1\r\n\r\n", 400),
        (LOGIN + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
        (LOGIN + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5000 + b"\r\n", 400),
        (LOGIN + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 422),
        (LOGIN + b"Content-Length: 2\r\n\r\n{}", 422),
    ],
    ids=lambda value: repr(value[-50:]) if isinstance(value, bytes) else None,
)
def test_an_invalid_http_request_is_refused(speak, request_bytes, status):
    answer = speak(request_bytes)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert status_of(answer) == status
    assert b"application/problem+json" in head
    assert b"Python" not in answer
    assert json.loads(body)["status"] == status


def test_one_address_can_open_only_a_limited_number_of_connections(run_gateway, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS_PER_ADDRESS", 3)
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
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS_PER_ADDRESS", 3)
    gateway = run_gateway(RATE_LIMIT_SCALE="1", TRUSTED_PROXIES="127.0.0.0/8")
    address = ("127.0.0.1", server_of(gateway.container).port)
    held = [socket.create_connection(address, timeout=10) for _ in range(5)]

    assert requests.get(f"{gateway.url}/livez").status_code == 200

    for connection in held:
        connection.close()


def test_a_truncated_body_is_refused(shop):
    with socket.create_connection(("127.0.0.1", shop.port), timeout=10) as connection:
        connection.sendall(LOGIN + b'Content-Length: 100\r\n\r\n{"email"')
        connection.shutdown(socket.SHUT_WR)

        assert status_of(connection.recv(65536)) == 400


def test_a_body_over_its_time_limit_is_refused(speak, monkeypatch):
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.5)

    answer = speak(LOGIN + b"Content-Length: 100\r\n\r\n{")

    assert status_of(answer) == 400


class BlockingCatalogue:
    """A service named products that answers once, after `may_answer`."""

    name = "products"

    is_called, may_answer = Event(), Event()

    @rpc
    def list_categories(self):
        self.is_called.send()
        self.may_answer.wait()
        return []


def test_a_stop_finishes_running_requests_and_closes_idle_connections(config, run_service, caplog):
    gateway = run_service(Gateway)
    run_service(BlockingCatalogue)
    url = f"http://127.0.0.1:{config['GATEWAY_PORT']}"
    wait_for(lambda: requests.get(f"{url}/products/categories?warm=up").status_code == 422)
    idle = requests.Session()
    assert idle.get(f"{url}/livez").status_code == 200
    feed = Feed(f"{url.replace('http', 'ws')}/ws/notifications")
    assert feed.receive()["type"] == "connected"
    running = eventlet.spawn(requests.get, f"{url}/products/categories")
    BlockingCatalogue.is_called.wait()

    stopping = eventlet.spawn(gateway.stop)
    wait_for(lambda: not accepts(("127.0.0.1", int(config["GATEWAY_PORT"]))))
    BlockingCatalogue.may_answer.send()
    stopping.wait()

    assert running.wait().json() == []
    assert feed.closing_code() == 1001
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/livez")
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_second_signal_does_not_prevent_a_clean_stop(config, processes):
    gateway = processes.start("gateway")
    address = ("127.0.0.1", int(config["GATEWAY_PORT"]))
    wait_for(lambda: accepts(address))
    with socket.create_connection(address) as connection:
        connection.sendall(LOGIN + b"Content-Length: 100\r\n\r\n{")
        gateway.send(signal.SIGTERM)
        wait_for(lambda: not accepts(address))

        gateway.send(signal.SIGTERM)

        # Until now the gateway waits for the body.
        connection.shutdown(socket.SHUT_WR)
        assert gateway.process.wait(timeout=SECONDS_TO_END) == 0


def accepts(address):
    with suppress(ConnectionError), socket.create_connection(address):
        return True


def test_two_gateways_share_a_port_and_one_may_stop(config, run_service):
    first = run_service(Gateway)
    second = run_service(Gateway)
    url = f"http://127.0.0.1:{config['GATEWAY_PORT']}"

    first.stop()

    assert [requests.get(f"{url}/livez").status_code for _ in range(20)] == [200] * 20
    second.stop()


def test_a_taken_port_is_reported_in_a_sentence():
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        server = server_module.WsgiServer()
        settings = {"GATEWAY_PORT": port, "RATE_LIMIT_SCALE": 1, "TRUSTED_PROXIES": ()}
        server.container = type("Container", (), {"config": settings})

        with pytest.raises(SystemExit, match=f"port {port} .*GATEWAY_PORT"):
            server.setup()
