"""Every operation of the OpenAPI document, requested with hostile input: never a 5xx."""

import json
from itertools import product as combinations
from urllib.parse import quote

import pytest

from .conftest import problem
from .documents import operations

pytestmark = pytest.mark.usefixtures("failures_are_forgotten")

PARTS = ["0", "-1", "01", "1.0", "1e3", str(2**63), "9" * 500, "None", "true", "%00", "%ff", "%2e%2e", "1%2f1", "';--"]
TEXTS = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800",
    "🍄" * 300,
    "‮مرحبا",
    "%s%n{0}",
    "' OR 1=1 --",
    "<script>",
    "\r\nSet-Cookie: a=b",
    "x" * 100_000,
]
NUMBERS = [0, -1, 1.5, 1e308, 2**31, 2**63, -(2**63) - 1, 10**28 + 1]
OTHERS = [None, True, [], {}, [[]], [None], {"a": {"a": []}}]
VALUES = TEXTS + NUMBERS + OTHERS
TOO_LONG = b" " * (2 * 1024 * 1024)
NOT_JSON = [b"", b"{", b"\xff\xfe", b"\x00", b"NaN", b"[1e400]", b"[" * 100_000, TOO_LONG]
NOT_OBJECTS = [
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b'{"a": 1, "a": 2}',
    b'{"items": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"items": [' + b"{}," * 50_000 + b"{}]}",
]
# Request lines, headers and JSON syntax are parsed before any route. So they are tested on one route of each kind: with
# a body, without one, with a cookie, and from the cache.
EACH_PART = ("/orders", "/products", "/auth/refresh")
READ_BY_ALL = ("Origin", "X-Request-ID", "Accept", "Content-Type", "Host")
READ_BY_SOME = ("If-Match", "If-None-Match", "Idempotency-Key")


def text_of(case):
    """The case as JSON. Python refuses to write an integer of thousands of digits."""
    return json.dumps(case).replace("10000000000000000000000000001", "1" * 4000)


def valid_body(operation, ids):
    valid = {
        "email": "ada@forage.example",
        "username": "Ada",
        "password": "boletus edulis",
        "old_password": "amanita muscaria",
        "token": "a token of a mail",
        "role": "customer",
        "is_active": True,
        "name": "Cep",
        "price": "8.50",
        "sku": "CEP-HOSTILE",
        "stock_quantity": 3,
        "items": [{"product_id": ids["product_id"], "quantity": 1}],
        "status": "confirmed",
        "read": True,
    }
    return {name: valid[name] for name in operation.body_schema["properties"] if name in valid}


@pytest.fixture(params=operations(), ids=str)
def operation(request):
    return request.param


@pytest.fixture(scope="module", autouse=True)
def values_are_no_secrets(nothing_secret_is_logged):
    """The values that these tests send as passwords and tokens are no secrets."""
    nothing_secret_is_logged.harmless.update(PARTS, TEXTS)


@pytest.fixture(scope="module")
def ids(new_customer, new_product):
    """The ids of existing resources, for the parameters of paths."""
    product, customer = new_product(), new_customer()
    order = customer.post("/orders", {"items": [{"product_id": product["id"], "quantity": 1}]}).json()
    return {
        "product_id": product["id"],
        "order_id": order["id"],
        "notification_id": 1,
        "user_id": customer.user["id"],
        "session_id": customer.get("/users/me/sessions").json()[0]["id"],
        "name": "start.js",
        "service": "products",
        "message_id": "m-1",
    }


@pytest.fixture
def send(admin, caplog):
    """`send(method, path)` sends a request as an admin, and checks that it gets no 5xx, and a problem if refused."""

    def send(method, path, **options):
        # With cookies, requests itself fails on a broken Host.
        admin.session.cookies.clear()
        # A redirect would lead out of the shop.
        answer = admin.request(method, path, allow_redirects=False, **options)
        assert answer.status_code < 500, (path[:200], str(options)[:200], answer.text)
        if answer.status_code >= 400:
            problem(answer)

    yield send
    assert not [
        record
        for record in caplog.records
        if record.name.startswith(("gateway", "nameko_reliable.web")) and record.exc_info
    ]


def test_no_path_gets_a_5xx(operation, send):
    method, path = operation.method, operation.path
    if "{" not in path:
        path += "/{more}"
    prefix, _, rest = path.partition("{")
    for part in PARTS:
        send(method, prefix + part + rest.partition("}")[2])


def test_no_query_gets_a_5xx(operation, ids, send):
    method, path = operation.method, operation.path.format(**ids)
    parameters = operation.described.get("parameters", ())
    names = [parameter["name"] for parameter in parameters if parameter["in"] == "query"]
    values = [quote(text[:2000], errors="surrogatepass") for text in TEXTS] + PARTS[:6]
    for name, value in [*combinations(names, values), ("unknown", "1"), ("%ff", "%ff")]:
        send(method, f"{path}?{name}={value}")
    if operation.path not in EACH_PART:
        return
    for query in ("&&&", "=", "=&=", "%", "a" * 7000, "&".join(f"a{n}" for n in range(1000))):
        send(method, f"{path}?{query}")


def test_no_header_gets_a_5xx(operation, ids, send):
    method, path = operation.method, operation.path
    if path in EACH_PART:
        names = (*READ_BY_ALL, *READ_BY_SOME)
    else:
        described = [parameter["name"] for parameter in operation.described.get("parameters", ())]
        names = [name for name in READ_BY_SOME if name in described]
    # An invalid body would be refused first.
    body = text_of(valid_body(operation, ids)) if operation.body_schema else None
    for name, value in combinations(names, (b"", b"\xff\xfe", b'"' * 3000, b"," * 5000)):
        headers = {"Content-Type": "application/json", name: value}
        send(method, path.format(**ids), data=body, headers=headers)


def test_no_body_gets_a_5xx(operation, ids, send):
    method, path = operation.method, operation.path
    if operation.body_schema is None:
        # A route without a body ignores one.
        bodies = (b"{", TOO_LONG)
    else:
        bodies = NOT_JSON + NOT_OBJECTS if path in EACH_PART else NOT_OBJECTS
    for body in bodies:
        send(method, path.format(**ids), data=body, headers={"Content-Type": "application/json"})


def test_no_field_value_gets_a_5xx(operation, ids, send):
    method, path, schema = operation.method, operation.path, operation.body_schema
    if schema is None:
        return
    whole = valid_body(operation, ids)
    cases = [whole | {name: value} for name in schema["properties"] for value in VALUES]
    if "items" in whole:
        fields = ("product_id", "quantity", "unit_price")
        cases += [{"items": [whole["items"][0] | {name: value}]} for name in fields for value in VALUES]
    for case in cases:
        send(
            method,
            path.format(**ids),
            data=text_of(case),
            headers={"Content-Type": "application/json"},
        )
