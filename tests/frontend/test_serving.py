"""nginx with the storefront, in front of a running gateway: paths, headers, caching, limits."""

import errno
import json
import re
import signal
import socket
import struct
import threading
import zlib
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count

import pytest
import requests
import websocket

from gateway.headers import CONTENT_SECURITY_POLICY, security_headers
from gateway.routes import docs
from nameko_reliable.testing.waiting import wait_for
from nameko_reliable.web import protocol
from tests.infrastructure.clients import client_at
from tests.infrastructure.feed import Feed

from .conftest import PAGE, SCRIPT

pytestmark = pytest.mark.server

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
SCRIPT_PATH = "/assets/index-C0FFEE.js"
PASSWORD = "boletus edulis"
SECURITY_HEADERS = security_headers({"FRONTEND_URL": "http://shop.example"})
numbers = count(1)


def get(site, path, **headers):
    headers = {"Accept-Encoding": "identity", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return requests.get(site.url + path, headers=headers, timeout=10, allow_redirects=False)


def ask(port, request):
    """Send these bytes and return the answer, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while received := connection.recv(65536):
            answer += received
    return answer


def still_answers(site):
    return site.server.process.poll() is None and get(site, "/").text == PAGE


@pytest.mark.parametrize("path", ["/", "/products/12", "/admin/orders?status=pending", "/index.html", "/b%C3%A4r"])
@pytest.mark.parametrize("accept", [BROWSER, "*/*"])
def test_every_route_of_the_storefront_is_answered_with_its_page(site, path, accept):
    answer = get(site, path, Accept=accept)

    assert (answer.status_code, answer.text) == (200, PAGE)
    assert answer.headers["Content-Type"].replace(" ", "") == "text/html;charset=utf-8"


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/assets/index-GONE.js", BROWSER),
        ("/pictures/none.svg", BROWSER),
        ("/products/12", "application/json"),
        ("/favicon.ico", "image/avif,image/webp,*/*;q=0.8"),
        ("/nothing.js", "*/*"),
        ("/.well-known/security.txt", BROWSER),
    ],
)
def test_an_unknown_path_is_answered_404(site, path, accept):
    answer = get(site, path, Accept=accept)

    assert (answer.status_code, answer.text) == (404, "There is nothing at this address.\n")
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "caching"),
    [
        ("/", "no-cache"),
        ("/orders/3", "no-cache"),
        ("/favicon.svg", "no-cache"),
        (SCRIPT_PATH, "public, max-age=31536000, immutable"),
        ("/pictures/morel.svg", "public, max-age=86400"),
    ],
)
def test_the_path_of_a_file_decides_how_long_it_is_cached(site, path, caching):
    first = get(site, path)
    second = get(site, path, If_None_Match=first.headers["ETag"])

    assert first.status_code == 200
    assert (second.status_code, second.content) == (304, b"")
    for answer in (first, second):
        assert answer.headers["Cache-Control"] == caching
        assert answer.headers["ETag"] == first.headers["ETag"]
        assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/orders/3"),
        ("HEAD", SCRIPT_PATH),
        ("GET", "/assets/none.js"),
        ("GET", "/pictures/morel.svg"),
        ("POST", "/"),
        ("GET", "/api/livez"),
        ("GET", "/api/orders"),
        ("GET", "/api/mushrooms"),
        ("GET", "/ws/notifications"),
        ("GET", "/ws/nothing"),
    ],
)
def test_every_answer_has_the_gateways_security_headers_once(site, method, path):
    answer = requests.request(method, site.url + path, timeout=10)

    for name, value in SECURITY_HEADERS.items():
        assert answer.raw.headers.getlist(name) == [value], name
    assert len(answer.raw.headers.getlist("Cache-Control")) == 1
    assert "Strict-Transport-Security" not in answer.headers
    assert not re.search(r"\d", answer.headers.get("Server", ""))


def test_the_gateways_docs_keep_their_own_content_security_policy(site):
    answer = get(site, "/api/docs")

    assert answer.raw.headers.getlist("Content-Security-Policy") == [docs.CONTENT_SECURITY_POLICY]
    assert get(site, "/api/docs/swagger-ui.css").status_code == 200


def test_a_shop_on_https_sends_strict_transport_security(serve, shop):
    expected = security_headers({"FRONTEND_URL": "https://shop.example"})["Strict-Transport-Security"]

    with serve(shop.port, FRONTEND_URL="https://shop.example") as site:
        answer = get(site, "/orders/3")

    assert answer.raw.headers.getlist("Strict-Transport-Security") == [expected]


@pytest.mark.parametrize("path", ["/", SCRIPT_PATH, "/assets/index-C0FFEE.css", "/pictures/morel.svg"])
def test_text_is_sent_compressed_to_clients_that_accept_gzip(site, path):
    plain = get(site, path)

    compressed = requests.get(site.url + path, headers={"Accept-Encoding": "gzip"}, timeout=10, stream=True)

    raw = compressed.raw.read(decode_content=False)
    if len(plain.content) > 1000:
        assert compressed.headers["Content-Encoding"] == "gzip"
        assert compressed.headers["Vary"] == "Accept-Encoding"
        assert len(raw) < len(plain.content) / 2
        assert zlib.decompress(raw, wbits=31) == plain.content
    assert "Content-Encoding" not in plain.headers
    assert compressed.headers["Content-Type"] == plain.headers["Content-Type"]


def test_a_content_coding_that_the_client_refuses_is_not_used(site):
    answer = get(site, SCRIPT_PATH, Accept_Encoding="gzip;q=0, br;q=0, identity")

    assert "Content-Encoding" not in answer.headers
    assert answer.text == SCRIPT


def test_head_answers_with_the_headers_of_get(site):
    answer = requests.head(site.url + SCRIPT_PATH, headers={"Accept-Encoding": "identity"}, timeout=10)

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(SCRIPT))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_reads_are_allowed_outside_of_the_api(site, method):
    assert requests.request(method, f"{site.url}/", data=b"x", timeout=10).status_code == 405


@pytest.mark.parametrize(
    "target",
    [
        b"/%",
        b"/%00",
        b"/%ff",
        b"/../../../../../../etc/passwd",
        b"/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        b"/assets/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        b"/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        b"//etc/passwd",
        b"/api/../../etc/passwd",
        b"/api/%",
        b"/api//evil.example/",
        b"/ws/%",
        b"*",
        b"http://evil.example/",
        b"\xff",
        b"/" + 20_000 * b"a",
    ],
)
def test_no_path_crashes_the_server_or_leaves_its_folder(site, target):
    answer = ask(site.port, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

    status = int(answer.split(b" ", 2)[1])
    assert status == 200 or 400 <= status < 500, answer[:500]
    assert b"root:" not in answer
    assert still_answers(site)


@pytest.mark.parametrize("value", ["bytes=10-5", "bytes=-1", "bytes=999999999-", "bytes=a-b", "bytes=0-0,5-6"])
def test_no_range_header_crashes_the_server(site, value):
    answer = get(site, SCRIPT_PATH, Range=value)

    assert answer.status_code in (200, 206, 416)
    assert still_answers(site)


def test_the_api_prefix_leads_to_the_gateway(site, shop):
    answer = get(site, "/api/products/categories?x=%2F%20ä")
    direct = requests.get(f"http://127.0.0.1:{shop.port}/products/categories?x=%2F%20ä", timeout=10)

    assert answer.status_code == direct.status_code == 422
    proxied, expected = answer.json(), direct.json()
    del proxied["request_id"], expected["request_id"]
    assert proxied == expected
    assert get(site, "/api/products/1%2F2").json()["instance"] == "/products/1/2"


def test_an_unchanged_answer_of_the_gateway_is_not_sent_again(site):
    first = requests.get(f"{site.url}/api/products", headers={"Accept-Encoding": "gzip"}, timeout=10)

    second = get(site, "/api/products", If_None_Match=first.headers["ETag"], Accept_Encoding="gzip")

    assert (first.status_code, second.status_code) == (200, 304)
    assert second.headers["Cache-Control"] == "no-cache"


@pytest.fixture
def account(shop):
    name = f"forager{next(numbers)}"
    shop.rpc.users.register(email=f"{name}@forage.example", username=name, password=PASSWORD)
    return {"email": f"{name}@forage.example", "password": PASSWORD}


def test_a_session_is_kept_by_its_cookie(site, account):
    browser = requests.Session()

    login = browser.post(f"{site.url}/api/users/login", json=account, timeout=10)
    refresh = browser.post(f"{site.url}/api/auth/refresh", headers={"Origin": site.url}, timeout=10)

    assert login.status_code == refresh.status_code == 200, refresh.text
    headers = {"Authorization": f"Bearer {refresh.json()['access_token']}"}
    me = browser.get(f"{site.url}/api/users/me", headers=headers, timeout=10)
    assert me.json()["email"] == account["email"]


def test_requests_from_pages_of_other_sites_are_refused(site):
    def refresh(origin):
        return requests.post(f"{site.url}/api/auth/refresh", headers={"Origin": origin}, timeout=10).status_code

    # A request from our own page is accepted, but has no cookie.
    assert refresh(site.url) == 401
    assert refresh("http://evil.example") == 403


def test_a_web_socket_reaches_the_gateway(site, account):
    login = requests.post(f"{site.url}/api/users/login", json=account, timeout=10).json()

    with closing(Feed(site.ws_url, origin=site.url)) as feed:
        headers = feed.socket.getheaders()
        greeting = feed.receive()
        feed.send(type="authenticate", token=login["access_token"])
        authenticated = feed.receive()

    assert greeting["type"] == "connected"
    assert authenticated["type"] == "authenticated"
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY


def test_the_gateway_refuses_a_web_socket_from_a_page_of_another_site(site):
    with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
        websocket.create_connection(site.ws_url, timeout=10, origin="http://evil.example")

    assert refusal.value.status_code == 403
    assert json.loads(refusal.value.resp_body)["type"] == "foreign-origin"


@pytest.mark.parametrize("path", ["/", "/api/livez", "/assets/x"])
def test_other_paths_refuse_a_web_socket(site, path):
    with pytest.raises(websocket.WebSocketBadStatusException):
        websocket.create_connection(f"ws://{site.host}{path}", timeout=10)

    assert still_answers(site)


def test_rate_limits_count_by_address_and_ignore_a_forged_header(site):
    def left(address, claimed=None):
        headers = {"X-Forwarded-For": claimed} if claimed else {}
        answer = client_at(address).get(f"{site.url}/api/auth/providers", headers=headers, timeout=10)
        return int(re.search(r"r=(\d+)", answer.headers["RateLimit"])[1])

    ada, bo = f"127.0.1.{next(numbers)}", f"127.0.1.{next(numbers)}"
    first, second, forged, other = left(ada), left(ada), left(ada, "192.0.2.7"), left(bo)

    assert (second, forged, other) == (first - 1, first - 2, first)


def test_a_web_socket_counts_as_a_request_of_its_client(site):
    def left(address):
        """The number of requests that are left to a client. A handshake counts as one."""
        answer = client_at(address).get(f"{site.url}/api/auth/providers", timeout=10)
        return int(re.search(r"r=(\d+)", answer.headers["RateLimit"])[1])

    address = f"127.0.2.{next(numbers)}"
    before = left(address)
    connection = socket.create_connection(("127.0.0.1", site.port), timeout=10, source_address=(address, 0))
    with closing(websocket.create_connection(site.ws_url, socket=connection)):
        after = left(address)

    assert before - after == 2


@pytest.mark.parametrize("megabytes", [2, 20])
def test_too_large_a_body_is_refused_with_a_problem(site, megabytes):
    body = b" " * (megabytes * 1024 * 1024)

    answer = requests.post(
        f"{site.url}/api/users/login", data=body, headers={"Content-Type": "application/json"}, timeout=30
    )

    assert answer.status_code == 413
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"] == "too-large"
    assert answer.json()["request_id"]
    assert len(answer.raw.headers.getlist("Content-Security-Policy")) == 1
    assert still_answers(site)


def test_a_chunked_body_reaches_the_gateway(site, account):
    chunks = iter([json.dumps(account).encode()[:10], json.dumps(account).encode()[10:]])

    answer = requests.post(
        f"{site.url}/api/users/login", data=chunks, headers={"Content-Type": "application/json"}, timeout=10
    )

    assert answer.status_code == 200, answer.text


def test_an_unreachable_gateway_leaves_the_pages_and_makes_the_api_answer_502(serve, closed_port):
    with serve(closed_port) as site:
        answer = get(site, "/api/products")
        with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
            websocket.create_connection(site.ws_url, timeout=10)

        assert still_answers(site)
    assert answer.status_code == refusal.value.status_code == 502
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.json()["type"], answer.json()["status"]) == ("gateway-away", 502)
    assert answer.json()["title"] and answer.json()["detail"]
    assert answer.headers["Retry-After"] == refusal.value.resp_headers["retry-after"] == "2"
    assert answer.raw.headers.getlist("Cache-Control") == ["no-store"]
    assert answer.raw.headers.getlist("Content-Security-Policy") == [CONTENT_SECURITY_POLICY]


@contextmanager
def dying_gateway(partial_answer):
    """The port of a server that answers each request with these bytes and then resets the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(partial_answer)
                    # Closing resets the connection, like the end of a process with unread input.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


HALF_AN_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nhalf"
WEB_SOCKET = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


@pytest.mark.parametrize("partial_answer", [b"", b"HTTP/1.1 2"])
def test_a_gateway_that_dies_before_it_answers_is_reported_with_502(serve, partial_answer):
    with dying_gateway(partial_answer) as port, serve(port) as site:
        answer = requests.post(f"{site.url}/api/orders", json={}, timeout=10)

        assert (answer.status_code, answer.json()["type"]) == (502, "gateway-away")
        assert still_answers(site)


def test_half_an_answer_is_an_error_for_the_client(serve):
    with dying_gateway(HALF_AN_ANSWER) as port, serve(port) as site:
        with pytest.raises(requests.RequestException):
            requests.get(f"{site.url}/api/orders", timeout=10)

        assert still_answers(site)


def test_a_web_socket_ends_with_its_gateway(serve):
    handshake = (
        b"GET /ws/notifications HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with dying_gateway(WEB_SOCKET) as port, serve(port) as site:
        answer = ask(site.port, handshake)

        head, _, rest = answer.partition(b"\r\n\r\n")
        assert b" 101 " in head.splitlines()[0] or b" 502 " in head.splitlines()[0]
        assert b" 101 " not in head or rest == b""
        assert still_answers(site)


UPGRADE = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_a_pipelined_upgrade_does_no_harm(site):
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        connection.sendall(b"GET /api/livez HTTP/1.1\r\nHost: a\r\n\r\n" + UPGRADE)
        connection.recv(1)

    assert still_answers(site)


@pytest.mark.parametrize(("path", "expected"), [("/", PAGE.encode()), ("/api/livez", b'"up"')])
def test_an_upgrade_to_http2_is_ignored(site, path, expected):
    offer = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n"

    answer = ask(site.port, f"GET {path} HTTP/1.1\r\nHost: a\r\n".encode() + offer)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert expected in answer


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize(
    "started_request",
    [
        b"GET / HTTP/1.1\r\nHos",
        b"GET /assets/index-C0FFEE.js HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /api/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /api/users/login HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf a body",
        b"GET /ws/notifications HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_clients_that_disconnect_do_not_affect_the_others(site, started_request):
    for _ in range(50):
        connection = socket.create_connection(("127.0.0.1", site.port), timeout=10)
        connection.sendall(started_request)
        reset(connection)

    assert still_answers(site)
    assert get(site, "/api/livez").status_code == 200


@pytest.mark.parametrize("started_request", [b"", b"GET / HTTP/1.1\r\nHos"])
def test_nginx_stops_at_once_despite_idle_connections(serve, closed_port, started_request):
    with serve(closed_port) as site:
        with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
            connection.sendall(started_request)
            assert still_answers(site)

            site.server.send(signal.SIGTERM)

            assert site.server.process.wait(3) == 0


def test_nginx_stops_at_once_despite_open_web_sockets(serve, shop):
    with serve(shop.port) as site, closing(Feed(site.ws_url)) as feed:
        assert feed.receive()["type"] == "connected"
        browser = requests.Session()
        assert browser.get(site.url, timeout=10).ok

        site.server.send(signal.SIGTERM)

        assert site.server.process.wait(3) == 0
        with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
            feed.receive()


LOGIN = b"POST /api/users/login HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"


def test_one_address_can_open_only_a_limited_number_of_connections(serve, shop):
    two_each = {"connections_of_address 512": "connections_of_address 2"}
    with serve(shop.port, edits=two_each) as site, ExitStack() as stack:
        for _ in range(2):
            connection = socket.create_connection(("127.0.0.1", site.port), timeout=10, source_address=("127.0.4.1", 0))
            web_socket = websocket.create_connection(site.ws_url, timeout=10, socket=connection)
            stack.enter_context(closing(web_socket))

        refused = client_at("127.0.4.1").get(f"{site.url}/api/livez", timeout=10)
        other = client_at("127.0.4.2").get(f"{site.url}/api/livez", timeout=10)

    assert (refused.status_code, other.status_code) == (503, 200)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert (refused.json()["type"], refused.headers["Retry-After"]) == ("overloaded", "2")


def test_only_a_trusted_proxy_can_name_the_client_that_is_counted(serve, shop):
    settings = {
        "edits": {"connections_of_address 512": "connections_of_address 1"},
        "TRUSTED_PROXIES": "10.0.0.0/8, 127.0.5.1",
    }
    with serve(shop.port, **settings) as site:

        def status(address, named):
            headers = {"X-Forwarded-For": named}
            return client_at(address).get(f"{site.url}/api/livez", headers=headers, timeout=10).status_code

        connection = socket.create_connection(("127.0.0.1", site.port), timeout=10, source_address=("127.0.5.1", 0))
        header = ["X-Forwarded-For: 192.0.2.1"]
        with closing(websocket.create_connection(site.ws_url, timeout=10, socket=connection, header=header)):
            statuses = [
                status("127.0.5.1", "192.0.2.1"),
                status("127.0.5.1", "192.0.2.2"),
                status("127.0.5.1", "192.0.2.1, 192.0.2.3"),
                status("127.0.5.2", "192.0.2.1"),
            ]

    assert statuses == [503, 200, 200, 200]


@pytest.mark.parametrize("started_request", [b"", b"GET / HTTP/1.1\r\nHos"])
def test_a_slow_request_head_is_timed_out(serve, closed_port, started_request):
    with serve(closed_port, edits={"client_header_timeout 15s": "client_header_timeout 1s"}) as site:
        assert ask(site.port, started_request) == b""


def test_a_body_that_pauses_is_timed_out(serve, shop):
    with serve(shop.port, edits={"client_body_timeout 30s": "client_body_timeout 1s"}) as site:
        answer = ask(site.port, LOGIN + b"Content-Length: 100\r\n\r\n{")

    assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


def test_a_slowly_sent_body_does_not_extend_its_deadline(serve, shop, monkeypatch):
    monkeypatch.setattr(protocol, "BODY_SECONDS", 1)
    with serve(shop.port) as site, socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        connection.sendall(LOGIN + b"Content-Length: 1000\r\n\r\n")
        connection.settimeout(0.05)
        answer = b""
        for _ in range(200):
            with suppress(TimeoutError):
                connection.sendall(b" ")
                answer = connection.recv(65536)
                break

    assert answer.startswith(b"HTTP/1.1 400")


def test_a_client_that_does_not_read_its_answer_is_disconnected(serve, shop):
    with serve(shop.port, edits={"send_timeout 30s": "send_timeout 1s"}) as site, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", site.port))
        slow.sendall(b"GET /api/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)

        assert wait_for(lambda: slow.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) == errno.ECONNRESET
