"""Every operation of the OpenAPI document, asked with what nobody should send: never a 5xx."""

import json
from itertools import product as combinations
from urllib.parse import quote

import pytest

from gateway.app import create_app
from gateway.auth import Tokens
from gateway.cache import Cache
from gateway.live import Live

from .conftest import problem

PIECES = ["0", "-1", "01", "1.0", "1e3", str(2**63), "9" * 500, "None", "true", "%00", "%ff", "%2e%2e", "1%2f1", "';--"]
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
BODIES = [
    b"",
    b"{",
    b"\xff\xfe",
    b"\x00",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"NaN",
    b"[1e400]",
    b'{"a": 1, "a": 2}',
    b"[" * 100_000,
    b'{"items": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"items": [' + b"{}," * 50_000 + b"{}]}",
    b" " * (2 * 1024 * 1024),
]


def text_of(case):
    """JSON of it; Python writes no whole number of thousands of digits by itself."""
    return json.dumps(case).replace("10000000000000000000000000001", "1" * 4000)


def described():
    """(method, path, operation) for each in the document, without a running shop."""
    document = json.loads(create_app({}, None, Tokens(), Cache(), Live()).extensions["openapi.json"])
    for path, entry in document["paths"].items():
        for method, operation in entry.items():
            if method != "parameters":
                yield method.upper(), path, operation, document


@pytest.fixture(params=described(), ids=lambda case: f"{case[0]} {case[1]}")
def operation(request):
    return request.param


@pytest.fixture(scope="module")
def ids(new_customer, new_product):
    """Things that are there, for paths that lead somewhere."""
    product = new_product()
    order = new_customer().post("/orders", {"items": [{"product_id": product["id"], "quantity": 1}]}).json()
    return {"product_id": product["id"], "order_id": order["id"], "notification_id": 1, "name": "start.js"}


@pytest.fixture
def is_refused_or_done(admin, caplog):
    """Asks as who may do most: no 5xx, and every refusal is a problem."""

    def check(method, path, **options):
        answer = admin.request(method, path, **options)
        assert answer.status_code < 500, (path[:200], str(options)[:200], answer.text)
        if answer.status_code >= 400:
            problem(answer)

    yield check
    assert not [record for record in caplog.records if record.name.startswith("gateway") and record.exc_info]


def test_paths(operation, is_refused_or_done):
    method, path, _, _ = operation
    if "{" not in path:
        path += "/{more}"
    prefix, _, rest = path.partition("{")
    for piece in PIECES:
        is_refused_or_done(method, prefix + piece + rest.partition("}")[2])


def test_queries(operation, ids, is_refused_or_done):
    method, path, operation, _ = operation
    path = path.format(**ids)
    names = [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
    values = [quote(text[:2000], errors="surrogatepass") for text in TEXTS] + PIECES[:6]
    for name, value in combinations([*names, "unknown", "%ff"], values):
        is_refused_or_done(method, f"{path}?{name}={value}")
    for query in ("&&&", "=", "=&=", "%", "a" * 7000, "&".join(f"a{n}" for n in range(1000))):
        is_refused_or_done(method, f"{path}?{query}")


def test_headers(operation, ids, is_refused_or_done):
    method, path, _, _ = operation
    for name in (
        "If-Match",
        "If-None-Match",
        "Idempotency-Key",
        "Origin",
        "X-Request-ID",
        "Accept",
        "Content-Type",
        "Host",
    ):
        for value in (b"", b"\xff\xfe", b'"' * 3000, b"," * 5000):
            is_refused_or_done(method, path.format(**ids), headers={name: value})


def test_bodies(operation, ids, is_refused_or_done):
    method, path, _, _ = operation
    for body in BODIES:
        is_refused_or_done(method, path.format(**ids), data=body, headers={"Content-Type": "application/json"})


def test_fields(operation, ids, is_refused_or_done):
    method, path, operation, document = operation
    if "requestBody" not in operation:
        return
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    sound = {
        "email": "ada@forage.example",
        "username": "Ada",
        "password": "boletus edulis",
        "name": "Cep",
        "price": "8.50",
        "sku": "CEP-HOSTILE",
        "stock_quantity": 3,
        "items": [{"product_id": ids["product_id"], "quantity": 1}],
        "status": "confirmed",
        "read": True,
    }
    whole = {name: sound[name] for name in schema["properties"] if name in sound}
    cases = [whole | {name: value} for name in schema["properties"] for value in VALUES]
    if "items" in whole:
        fields = ("product_id", "quantity", "unit_price")
        cases += [{"items": [whole["items"][0] | {name: value}]} for name in fields for value in VALUES]
    for case in cases:
        is_refused_or_done(
            method,
            path.format(**ids),
            data=text_of(case),
            headers={"Content-Type": "application/json"},
        )
