"""The security and CORS headers of every answer, whichever part gives it."""

import re
import socket
from uuid import uuid4

import pytest
import requests
import websocket

from gateway import cookies
from gateway.auth import AllowedOrigins
from gateway.headers import CONTENT_SECURITY_POLICY
from gateway.routes import docs as docs_module
from gateway.routes.docs import DocsAssets

from .conftest import PASSWORD, Client, every_answer

OURS, OTHER, FOREIGN = "http://shop.example:8080", "https://third.example", "https://evil.example"


@every_answer
def test_every_answer_has_the_security_headers(anonymous, method, path, headers, status):
    answer = anonymous.request(method, path, headers=headers)

    assert answer.status_code == status
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Request-ID"]
    assert "Server" not in answer.headers
    assert "Strict-Transport-Security" not in answer.headers


def test_the_answer_to_a_malformed_request_has_the_security_headers(shop):
    with socket.create_connection(("127.0.0.1", shop.port), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head = connection.recv(65536).partition(b"\r\n\r\n")[0].decode()

    assert f"Content-Security-Policy: {CONTENT_SECURITY_POLICY}" in head
    assert "X-Content-Type-Options: nosniff" in head
    assert "Server" not in head


def test_a_websocket_handshake_has_the_security_headers_and_its_request_id(shop):
    connection = websocket.create_connection(shop.ws_url, header=["X-Request-ID: r-1"])

    headers = connection.getheaders()

    assert connection.getstatus() == 101
    assert headers["x-request-id"] == "r-1"
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["ratelimit-policy"]
    connection.close()


def test_a_shop_on_https_sends_hsts(run_gateway):
    url = run_gateway(FRONTEND_URL="https://shop.example").url

    assert re.fullmatch(r"max-age=\d{8}", requests.get(f"{url}/livez").headers["Strict-Transport-Security"])


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_a_shop_on_https_sets_secure_cookies(run_gateway, customer, scheme):
    client = Client(run_gateway(FRONTEND_URL=f"{scheme}://shop.example").url)
    account = {"email": customer.user["email"], "password": PASSWORD}

    login, sign_in = client.post("/users/login", account), client.get("/auth/google", allow_redirects=False)

    for answer, name in ((login, cookies.REFRESH), (sign_in, cookies.SIGN_IN)):
        assert answer.headers["Set-Cookie"].startswith(name)
        assert "; Secure;" in answer.headers["Set-Cookie"]


def test_only_the_docs_page_allows_inline_styles(anonymous):
    policy = anonymous.get("/docs").headers["Content-Security-Policy"]

    assert "style-src 'self' 'unsafe-inline'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in CONTENT_SECURITY_POLICY


def test_a_gateway_without_its_docs_assets_names_the_command_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_module, "ASSETS", tmp_path)

    with pytest.raises(SystemExit, match="run `npm ci`"):
        DocsAssets().setup()


def cors_headers(answer):
    return {name for name in answer.headers if name.startswith("Access-Control-")}


@pytest.mark.parametrize("origin", [OURS, OTHER])
@every_answer
def test_allowed_origins_may_read_every_answer(anonymous, method, path, headers, status, origin):
    answer = anonymous.request(method, path, headers={"Origin": origin, **headers})

    assert answer.status_code == status
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"ETag", "Link", "Location", "X-Total-Count", "X-Request-ID", "Retry-After", "RateLimit"} <= set(exposed)
    assert answer.headers["Vary"] == "Origin"


def test_allowed_origins_may_read_rate_limit_refusals(run_gateway):
    url = run_gateway(RATE_LIMIT_SCALE="0.001").url

    answers = [requests.get(f"{url}/auth/providers", headers={"Origin": OURS}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].headers["Access-Control-Allow-Origin"] == OURS
    assert answers[1].headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY


@pytest.mark.parametrize("origin", [FOREIGN, "null", "", "http://shop.example", "https://shop.example:8080", "*"])
@pytest.mark.parametrize("path", ["/products/categories", "/mushrooms"])
def test_foreign_origins_may_read_nothing(anonymous, origin, path):
    answer = anonymous.get(path, headers={"Origin": origin})

    assert not cors_headers(answer)
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("path", ["/orders", "/products/1", "/mushrooms", "/auth/refresh"])
def test_a_preflight_answer_lists_the_methods_and_headers_of_the_api(anonymous, path):
    ask = {
        "Origin": OURS,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,if-match",
    }

    answer = anonymous.request("OPTIONS", path, headers=ask)

    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == OURS
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert {"GET", "POST", "PUT", "PATCH", "DELETE"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))
    allowed = set(answer.headers["Access-Control-Allow-Headers"].lower().split(", "))
    assert allowed >= set(ask["Access-Control-Request-Headers"].split(","))
    assert "*" not in str(answer.headers)


def test_a_preflight_of_a_foreign_origin_is_allowed_nothing(anonymous):
    ask = {"Origin": FOREIGN, "Access-Control-Request-Method": "POST"}

    assert "Access-Control-Allow-Origin" not in anonymous.request("OPTIONS", "/orders", headers=ask).headers


@pytest.mark.parametrize(
    ("given", "sent"), [("https://a.example:443", "https://a.example"), ("http://b:80", "http://b")]
)
def test_an_origin_is_compared_without_its_default_port(given, sent):
    assert AllowedOrigins({"FRONTEND_URL": OURS, "ALLOWED_ORIGINS": [given]}).allows(sent)


def test_no_other_origin_is_allowed():
    origins = AllowedOrigins({"FRONTEND_URL": OURS, "ALLOWED_ORIGINS": []})

    assert not any(origins.allows(origin) for origin in (FOREIGN, "null", "", "*"))


@pytest.mark.parametrize("path", ["/auth/refresh", "/auth/logout"])
def test_a_cookie_route_refuses_a_foreign_origin_first(anonymous, path):
    answer = anonymous.post(path, headers={"Origin": FOREIGN, "Authorization": "Bearer nonsense"})

    assert answer.status_code == 403
    assert answer.json()["type"] == "foreign-origin"
    assert "ALLOWED_ORIGINS" in answer.json()["detail"]


def test_a_page_of_an_allowed_origin_can_use_the_whole_storefront_api(anonymous, admin, new_product, open_feed):
    product, email = new_product(), f"{uuid4().hex}@forage.example"
    account = {"email": email, "username": uuid4().hex, "password": PASSWORD}
    for client in (anonymous, admin):
        client.session.headers["Origin"] = OTHER

    register = anonymous.post("/users/register", account)
    login = anonymous.post("/users/login", {"email": email, "password": PASSWORD})
    anonymous.session.headers["Authorization"] = f"Bearer {login.json()['access_token']}"
    answers = [
        register,
        login,
        anonymous.get("/users/me"),
        anonymous.get("/products?page=1&limit=20"),
        anonymous.get(f"/products/{product['id']}"),
        order := anonymous.post("/orders", {"items": [{"product_id": product["id"], "quantity": 1}]}),
        anonymous.get("/orders"),
        admin.patch(f"/orders/{order.json()['id']}/status", {"status": "confirmed"}),
    ]
    open_feed(origin=OTHER)

    del admin.session.headers["Origin"]
    assert [answer.status_code for answer in answers] == [201, 200, 200, 200, 200, 201, 200, 200]
    assert {answer.headers["Access-Control-Allow-Origin"] for answer in answers} == {OTHER}
