"""Access: every operation of the OpenAPI document, requested with each role."""

import json
import secrets
import time
from contextlib import nullcontext
from types import SimpleNamespace

import jwt
import pytest
import requests
from flask import Flask

from gateway import auth
from gateway.app import refuse_open_views
from gateway.auth import AllowedOrigins, public
from gateway.errors import ForeignOrigin, Unauthenticated
from nameko_reliable.testing.waiting import wait_for

from .conftest import PASSWORD, Client, problem
from .documents import operations

# Only the address of these requests is valid.
INVALID_BODY = {"data": b"\xff{", "headers": {"Content-Type": "text/plain"}}
REFUSALS = {"unauthenticated", "access-denied"}
OPERATIONS = list(operations())
# Operations with a query parameter that only admins may send.
WITH_ADMIN_PARAMETER = [operation for operation in OPERATIONS if operation.admin_when]
every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)


def of_access(*levels):
    fitting = [operation for operation in OPERATIONS if operation.access in levels]
    return pytest.mark.parametrize("operation", fitting, ids=str)


def kind_of_refusal(answer):
    """`unauthenticated`, `access-denied`, or None for any other answer."""
    kind = answer.json().get("type") if "problem+json" in answer.headers.get("Content-Type", "") else None
    return kind if kind in REFUSALS else None


@every_operation
def test_every_operation_says_who_may_use_it(operation):
    assert operation.access in ("public", "user", "owner", "owner or admin", "admin")
    assert bool(operation.security) == (operation.access != "public" or operation.admin_when is not None)


@of_access("user", "owner", "owner or admin", "admin")
def test_a_request_without_a_token_gets_401_before_validation(anonymous, operation):
    answer = anonymous.request(operation.method, operation.path_with(1), **INVALID_BODY)

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert problem(answer)["type"] == "unauthenticated"


@of_access("admin")
def test_a_customer_gets_403_at_an_admin_route_before_validation(customer, operation):
    answer = customer.request(operation.method, operation.path_with(1), **INVALID_BODY)

    assert answer.status_code == 403
    assert problem(answer)["type"] == "access-denied"


@of_access("public")
def test_anyone_may_use_a_public_route(shop, operation):
    """A public route also ignores an invalid token."""
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        answer = requests.request(
            operation.method, shop.url + operation.path_with(1), headers=headers, allow_redirects=False, timeout=15
        )
        assert kind_of_refusal(answer) is None


@of_access("user", "owner", "owner or admin")
def test_a_customer_may_use_a_user_route(customer, operation):
    assert kind_of_refusal(customer.request(operation.method, operation.path_with(1), **INVALID_BODY)) is None


@every_operation
def test_an_admin_is_never_refused_by_role(admin, operation):
    # A redirect would lead out of the shop.
    answer = admin.request(operation.method, operation.path_with(999_999_999), allow_redirects=False)

    assert kind_of_refusal(answer) is None


@pytest.mark.parametrize("operation", WITH_ADMIN_PARAMETER, ids=str)
def test_an_admin_parameter_is_refused_to_other_callers(anonymous, customer, admin, operation):
    path = f"{operation.path_with(1)}?{'='.join(operation.admin_when)}"

    assert anonymous.request(operation.method, path).status_code == 401
    assert customer.request(operation.method, path).status_code == 403
    assert admin.request(operation.method, path).status_code == 200


# Ownership


@pytest.fixture
def owned(shop, new_customer, new_product):
    """A customer with one of each resource that has an owner. ids: {path parameter: id}."""
    owner = new_customer()
    order = owner.post("/orders", {"items": [{"product_id": new_product()["id"], "quantity": 1}]}).json()

    def notifications():
        found = owner.get("/notifications").json()["notifications"]
        assert found
        return found

    ids = {
        "order_id": order["id"],
        "notification_id": wait_for(notifications)[0]["id"],
        "session_id": owner.get("/users/me/sessions").json()[0]["id"],
    }
    return SimpleNamespace(owner=owner, ids=ids)


def send(client, operation, ids):
    return client.request(operation.method, operation.path.format(**ids), json=operation.example_body)


@of_access("owner", "owner or admin")
def test_another_users_resource_is_not_found(owned, customer, operation):
    answer = send(customer, operation, owned.ids)

    assert answer.status_code == 404
    # The answer is the same as for an unknown id.
    unknown = send(customer, operation, dict.fromkeys(owned.ids, 999_999_999))
    assert problem(answer)["type"] == problem(unknown)["type"]
    assert problem(answer).keys() == problem(unknown).keys()


@of_access("owner", "owner or admin")
def test_an_owner_finds_their_own_resource(owned, operation):
    assert send(owned.owner, operation, owned.ids).status_code in (200, 204, 409)


@of_access("owner", "owner or admin")
def test_an_admin_sees_another_users_resource_where_the_access_level_says_so(owned, admin, operation):
    answer = send(admin, operation, owned.ids)

    assert (answer.status_code == 404) == (operation.access == "owner")


# Tokens


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"email": None},
        {"email_verified": None},
        {"role": None},
        {"jti": None},
        {"iat": 2**40},
        {"nbf": 2**40},
        {"iat": "now"},
        {"sub": "0"},
        {"sub": "-1"},
        {"sub": "one"},
        {"sub": "9" * 25},
        {"email": 3},
        {"role": "root"},
        {"role": ["admin"]},
        {"secret": "another secret of 32 bytes or more"},
        {"algorithm": "HS512"},
    ],
    ids=str,
)
def test_an_incomplete_forged_or_expired_token_is_refused(anonymous, new_token, changes):
    answer = anonymous.get("/users/me", headers={"Authorization": f"Bearer {new_token(**changes)}"})

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')


def part(value):
    return jwt.utils.base64url_encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE"])
def test_a_token_without_a_signature_is_refused(anonymous, new_token, algorithm):
    _, claims, signature = new_token().split(".")

    for ending in ("", signature):
        unsigned = f"{part({'alg': algorithm, 'typ': 'JWT'})}.{claims}.{ending}"
        assert anonymous.get("/users/me", headers={"Authorization": f"Bearer {unsigned}"}).status_code == 401


def test_a_token_with_a_forged_role_is_refused(shop, customer):
    header, claims, signature = customer.token.split(".")
    raised = json.loads(jwt.utils.base64url_decode(claims)) | {"role": "admin"}
    forger = Client(shop.url, f"{header}.{part(raised)}.{signature}")

    assert forger.get("/users").status_code == 401
    assert customer.get("/users").status_code == 403


def test_a_token_that_carries_its_own_key_is_refused(anonymous, new_token):
    claims = jwt.decode(new_token(role="admin"), options={"verify_signature": False})
    key = "a forger's key, of 32 bytes or more"
    header = {"jwk": {"kty": "oct", "k": part(key)}, "kid": "/dev/null", "jku": "https://evil.example/keys"}
    forged = jwt.encode(claims, key, algorithm="HS256", headers=header)

    assert anonymous.get("/users", headers={"Authorization": f"Bearer {forged}"}).status_code == 401


def test_a_disabled_user_gets_no_new_token_and_the_old_one_expires(shop, admin, new_customer, new_token):
    user = new_customer()
    login = user.post("/users/login", {"email": user.user["email"], "password": PASSWORD}).json()
    admin.patch(f"/users/{user.user['id']}", {"is_active": False})

    # As docs/security.md says, only the signature of an access token is checked. It lives for 15 minutes at most.
    assert user.get("/orders").status_code == 200
    assert user.post("/auth/refresh").status_code == 401
    claims = jwt.decode(login["access_token"], options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 15 * 60


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Basic YTpi", "Bearer a.b.c", "Bearer " + "W1tb" * 1500, "é", "x"]
)
def test_a_broken_authorization_header_is_refused(anonymous, header):
    answer = anonymous.get("/users/me", headers={"Authorization": header.encode()})

    assert answer.status_code == 401


def test_during_a_secret_rotation_only_tokens_of_the_two_secrets_are_accepted(access_tokens, new_token):
    current, previous, other = (secrets.token_hex() for _ in range(3))
    access_tokens.container.config = {"JWT_SECRET": current, "JWT_SECRET_PREVIOUS": previous}

    access_tokens.setup()

    assert (
        access_tokens.read(new_token(secret=current)).user_id
        == access_tokens.read(new_token(secret=previous)).user_id
        == 1
    )
    with pytest.raises(Unauthenticated, match="not valid"):
        access_tokens.read(new_token(secret=other))
    with pytest.raises(Unauthenticated, match="expired"):
        access_tokens.read(new_token(secret=previous, exp=int(time.time()) - 1))


def test_a_token_that_was_accepted_is_refused_once_it_has_expired(access_tokens, new_token, monkeypatch):
    access_tokens.container.config = {"JWT_SECRET": (secret := secrets.token_hex()), "JWT_SECRET_PREVIOUS": None}
    access_tokens.setup()
    token = new_token(secret=secret)
    expires_at = access_tokens.read(token).expires_at

    monkeypatch.setattr(auth, "time", SimpleNamespace(time=lambda: expires_at))

    with pytest.raises(Unauthenticated, match="expired"):
        access_tokens.read(token)


@pytest.mark.parametrize("claim, counts", ((True, True), (False, False), ("true", False), (1, False)))
def test_only_a_claim_of_true_proves_the_address(access_tokens, new_token, claim, counts):
    access_tokens.container.config = {"JWT_SECRET": (secret := secrets.token_hex()), "JWT_SECRET_PREVIOUS": None}
    access_tokens.setup()

    assert access_tokens.read(new_token(secret=secret, email_verified=claim)).email_verified is counts


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
def test_an_origin_is_the_shops_or_foreign(origin, is_foreign):
    origins = AllowedOrigins({"FRONTEND_URL": "http://shop.example:8080", "ALLOWED_ORIGINS": ["https://other.example"]})

    with pytest.raises(ForeignOrigin) if is_foreign else nullcontext():
        origins.check(origin, "gateway.example:3000")
