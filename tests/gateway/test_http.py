import io
import json
import logging
import re

import pytest

from gateway import Gateway
from gateway.api import MAX_BODY_BYTES
from nameko_reliable.rpc import rpc
from nameko_reliable.telemetry.logs import LogContext, formatter
from nameko_reliable.testing.waiting import wait_for

from .conftest import Client, problem

CREDENTIALS = {"email": "nobody@forage.example", "password": "wrong password"}


def test_an_unknown_address_gets_a_problem(anonymous):
    answer = anonymous.get("/mushrooms")

    assert answer.status_code == 404
    assert problem(answer)["type"] == "not-found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/orders", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/products/1", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("TRACE", "/health", "GET, HEAD, OPTIONS"),
        ("BREW", "/health", "GET, HEAD, OPTIONS"),
        ("GET", "/users/login", "OPTIONS, POST"),
    ],
)
def test_an_unsupported_method_is_405(anonymous, method, path, allowed):
    answer = anonymous.request(method, path)

    assert answer.status_code == 405
    assert answer.headers["Allow"] == allowed
    assert problem(answer)["type"] == "method-not-allowed"


@pytest.mark.parametrize("path", ["/orders", "/products", "/products/1", "/users/login"])
def test_options_lists_the_methods_without_a_token(anonymous, path):
    answer = anonymous.request("OPTIONS", path)

    assert answer.status_code == 200
    assert "OPTIONS" in answer.headers["Allow"]


@pytest.mark.parametrize("path", ["/health", "/users/me", "/nowhere", "/products", "/openapi.json"])
def test_head_is_get_without_the_body(anonymous, path):
    head, get = anonymous.request("HEAD", path), anonymous.get(path)

    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json", ";", "é"]
)
def test_a_body_without_the_json_content_type_is_415(anonymous, content_type):
    headers = {"Content-Type": content_type.encode("latin-1")} if content_type else {}

    answer = anonymous.request("POST", "/users/login", data=json.dumps(CREDENTIALS), headers=headers)

    assert answer.status_code == 415
    assert problem(answer)["type"] == "unsupported-media-type"


def test_the_json_content_type_may_name_its_charset(anonymous):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}

    answer = anonymous.request("POST", "/users/login", data=json.dumps(CREDENTIALS), headers=headers)

    assert problem(answer)["type"] == "invalid-credentials"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"a": 1, "a": 1}', b"[1e400]", b"[" * 50_000])
def test_a_body_that_is_not_json_is_400(anonymous, body):
    answer = anonymous.request("POST", "/users/login", data=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 400
    assert problem(answer)["type"] == "malformed-request"


@pytest.mark.parametrize("body", ["[]", "null", "3", '"x"', "true"])
def test_json_that_is_not_an_object_is_422(anonymous, body):
    answer = anonymous.request("POST", "/users/login", data=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 422


@pytest.mark.parametrize("body", [{"items": [{}] * 5000}, {f"a{n}": n for n in range(5000)}, [[[]] * 1500] * 3])
def test_json_with_thousands_of_values_gets_a_short_refusal(customer, body):
    answer = customer.post("/orders", body)

    assert answer.status_code == 422
    assert len(answer.content) < 1000


def in_chunks(body):
    for start in range(0, len(body), 65536):
        yield body[start : start + 65536]


@pytest.mark.parametrize("shape", [bytes, in_chunks], ids=["with its length", "chunked"])
def test_a_body_of_1_mib_is_read_and_a_longer_one_is_413(anonymous, shape):
    headers = {"Content-Type": "application/json"}

    longest = anonymous.request("POST", "/users/login", data=shape(b" " * MAX_BODY_BYTES), headers=headers)
    longer = anonymous.request("POST", "/users/login", data=shape(b" " * (MAX_BODY_BYTES + 1)), headers=headers)
    twice = anonymous.request("POST", "/users/login", data=shape(b" " * 2 * MAX_BODY_BYTES), headers=headers)

    assert longest.status_code == 400
    assert (longer.status_code, twice.status_code) == (413, 413)
    assert problem(longer)["type"] == "too-large"
    assert anonymous.get("/livez").status_code == 200


def test_a_chunked_body_is_accepted(anonymous):
    body = json.dumps(CREDENTIALS).encode()

    answer = anonymous.request(
        "POST", "/users/login", data=in_chunks(body), headers={"Content-Type": "application/json"}
    )

    assert problem(answer)["type"] == "invalid-credentials"


@pytest.mark.parametrize("path", ["/health", "/products/1", "/products/categories", "/openapi.json", "/docs"])
def test_unknown_query_parameters_are_refused(anonymous, path):
    answer = anonymous.get(f"{path}?colour=red")

    assert answer.status_code == 422
    assert problem(answer)["errors"] == {"colour": ["Unknown field."]}


@pytest.mark.parametrize("query", ["name=%ff", "name=%c3%28", "%ff=1", "name=%ED%A0%80"])
@pytest.mark.parametrize("path", ["/products", "/products/categories"])
def test_a_query_that_is_not_utf_8_is_malformed(anonymous, path, query):
    answer = anonymous.get(f"{path}?{query}")

    assert answer.status_code == 400


def test_a_request_id_is_returned(anonymous):
    answer = anonymous.get("/livez", headers={"X-Request-ID": "My_request-1.0"})

    assert answer.headers["X-Request-ID"] == "My_request-1.0"


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "a;b", 'a"b', "é".encode()])
def test_a_missing_or_invalid_request_id_is_replaced(anonymous, given):
    answer = anonymous.get("/livez", headers={"X-Request-ID": given} if given is not None else {})

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def test_no_header_names_the_software(anonymous):
    for path in ("/health", "/products", "/nowhere"):
        headers = anonymous.get(path).headers

        assert not re.search("python|flask|werkzeug|eventlet|nameko", str(headers), re.IGNORECASE)


@pytest.fixture
def log():
    """`log()` is the list of entries that were logged since the start of the test."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter("json", "INFO"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.removeHandler(handler)
    root.setLevel(level)


def test_each_request_is_logged_once(anonymous, log):
    answer = anonymous.get("/products?name=secret")

    (entry,) = [entry for entry in log() if entry.get("path") == "/products"]
    assert (entry["method"], entry["status"], entry["level"]) == ("GET", 200, "INFO")
    assert entry["duration_ms"] > 0
    assert entry["request_id"] == answer.headers["X-Request-ID"]
    assert "secret" not in json.dumps(entry)


def test_the_log_has_no_tokens_and_no_passwords(anonymous, customer, open_feed, log):
    anonymous.post("/users/login", {"email": customer.user["email"], "password": "boletus edulis"})
    customer.get("/orders")
    feed = open_feed(customer.token)
    feed.send(type="authenticate", token=customer.token)
    feed.receive_until("authenticated")

    text = json.dumps([entry for entry in log() if not entry["logger"].startswith(("urllib3", "nameko."))])

    assert text.count("/users/login") > 0
    assert customer.token not in text
    assert "boletus edulis" not in text


class LoggingCatalogue:
    name = "products"
    log_context = LogContext()

    @rpc
    def list_categories(self):
        logging.getLogger("catalogue").info("here")
        return []


def test_the_request_id_is_passed_to_the_service(config, run_service, log):
    run_service(Gateway)
    run_service(LoggingCatalogue)
    client = Client(f"http://127.0.0.1:{config['GATEWAY_PORT']}")

    def answered():
        # The cache is empty, as no call has been answered yet.
        return client.get("/products/categories", headers={"X-Request-ID": "travels"}).status_code == 200

    wait_for(answered)

    assert [entry["request_id"] for entry in log() if entry["logger"] == "catalogue"] == ["travels"]


def test_an_address_with_double_slashes_is_not_redirected(anonymous):
    """Flask would redirect it to the Host that the client sent."""
    answer = anonymous.get("//products//1", headers={"Host": "evil.example"}, allow_redirects=False)

    assert answer.status_code == 404
    assert "Location" not in answer.headers
