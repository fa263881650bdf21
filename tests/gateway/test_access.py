from contextlib import nullcontext

import jwt
import pytest
import requests
from flask import Flask

from gateway.app import refuse_open_views
from gateway.auth import Origins, public
from gateway.errors import ForeignOrigin

from .conftest import problem

USER_ROUTES = [
    ("GET", "/users/me"),
    ("POST", "/orders"),
    ("GET", "/orders"),
    ("GET", "/orders/1"),
    ("PATCH", "/orders/1/status"),
    ("GET", "/notifications"),
    ("GET", "/notifications/1"),
    ("PATCH", "/notifications/1"),
    ("POST", "/notifications/retry/1"),
]
ADMIN_ROUTES = [
    ("POST", "/products"),
    ("PUT", "/products/1"),
    ("PATCH", "/products/1"),
    ("PATCH", "/products/1/stock"),
    ("DELETE", "/products/1"),
    ("GET", "/products?is_active=false"),
    ("GET", "/orders?all=true"),
    ("GET", "/notifications?all=true"),
]
# Nothing about these is right but their address.
HOPELESS = {"data": b"\xff{", "headers": {"Content-Type": "text/plain"}}


@pytest.mark.parametrize(("method", "path"), USER_ROUTES + ADMIN_ROUTES)
def test_without_a_token_the_answer_is_401_whatever_else_is_wrong(anonymous, method, path):
    answer = anonymous.request(method, path, **HOPELESS)

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert problem(answer)["type"] == "unauthenticated"


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_a_customer_at_an_admins_route_gets_403_whatever_else_is_wrong(customer, method, path):
    answer = customer.request(method, path, **HOPELESS)

    assert answer.status_code == 403
    assert problem(answer)["type"] == "access-denied"


def test_access_comes_before_the_bounds_of_an_id(anonymous):
    assert anonymous.get(f"/orders/{2**63}").status_code == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"email": None},
        {"role": None},
        {"jti": None},
        {"sub": "0"},
        {"sub": "-1"},
        {"sub": "one"},
        {"sub": "9" * 25},
        {"email": 3},
        {"secret": "another secret of 32 bytes or more"},
        {"algorithm": "HS512"},
    ],
    ids=str,
)
def test_a_token_that_is_not_whole_true_and_fresh_is_refused(anonymous, new_token, changes):
    answer = anonymous.get("/users/me", headers={"Authorization": f"Bearer {new_token(**changes)}"})

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')


def test_a_token_without_a_signature_is_refused(anonymous, new_token):
    claims = jwt.decode(new_token(), options={"verify_signature": False})
    unsigned = jwt.encode(claims, None, algorithm="none")

    assert anonymous.get("/users/me", headers={"Authorization": f"Bearer {unsigned}"}).status_code == 401


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Basic YTpi", "Bearer a.b.c", "Bearer " + "W1tb" * 1500, "é", "x"]
)
def test_a_broken_authorization_header_is_refused(anonymous, header):
    answer = anonymous.get("/users/me", headers={"Authorization": header.encode()})

    assert answer.status_code == 401


def test_a_bad_token_at_a_public_route_is_ignored(shop):
    answer = requests.get(f"{shop.url}/products", headers={"Authorization": "Bearer nonsense"})

    assert answer.status_code == 200


def test_tokens_must_be_signed_with_a_long_secret(tokens):
    tokens.container.config = {"JWT_SECRET": "s" * 31}

    with pytest.raises(SystemExit, match="JWT_SECRET"):
        tokens.setup()


def test_a_view_without_an_access_decorator_keeps_the_app_from_starting():
    app = Flask("shop", static_folder=None)
    app.add_url_rule("/open", "open", public(lambda: ""))
    refuse_open_views(app)

    app.add_url_rule("/forgotten", "forgotten", lambda: "")

    with pytest.raises(RuntimeError, match="forgotten"):
        refuse_open_views(app)


@pytest.mark.parametrize(
    ("origin", "is_foreign"),
    [
        (None, False),
        ("http://gateway.example:3000", False),
        ("HTTP://Gateway.Example:3000", False),
        ("http://shop.example:8080", False),
        ("https://other.example", False),
        ("http://shop.example", True),
        ("https://shop.example:8080", True),
        ("http://gateway.example", True),
        ("https://evil.example", True),
        ("null", True),
        ("", True),
        ("http://[", True),
    ],
)
def test_origins_are_the_shops_or_foreign(origin, is_foreign):
    origins = Origins({"FRONTEND_URL": "http://shop.example:8080/", "ALLOWED_ORIGINS": "https://other.example,"})

    with pytest.raises(ForeignOrigin) if is_foreign else nullcontext():
        origins.check(origin, "gateway.example:3000")
