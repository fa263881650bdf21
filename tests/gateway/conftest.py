"""A whole shop for all gateway tests of the session: every service and the gateway, in this process."""

import secrets
import time
from itertools import count
from types import SimpleNamespace
from uuid import uuid4

import jwt
import pytest
import requests
from nameko.runners import ServiceRunner

from gateway import Gateway
from gateway.auth import AccessTokens
from nameko_reliable.amqp import broker as amqp_broker
from nameko_reliable.testing.servers import free_port
from nameko_reliable.testing.waiting import wait_for
from services import every_service
from tests.infrastructure.configuration import configuration
from tests.infrastructure.feed import Feed
from tests.shop import Shop

PASSWORD = "boletus edulis"
_numbers = count(1)


@pytest.fixture(scope="session")
def shop(brokers, databases, smtp_server, sign_in_provider_server):
    """`url`, `ws_url`, `port`, `config`, `rpc`, `sql`, and the container of the `gateway`."""
    services = every_service()
    broker = brokers.new()
    config = configuration(
        broker,
        {service.name: databases.new(service.name) for service in services},
        smtp_server,
        GATEWAY_PORT=str(free_port()),
        FRONTEND_URL="http://shop.example:8080",
        ALLOWED_ORIGINS="https://other.example, https://third.example",
        **sign_in_provider_server.settings,
    )
    # A busy broker may answer nothing for a second. A call still has its deadline.
    patience = pytest.MonkeyPatch()
    patience.setattr(amqp_broker, "SILENCE_SECONDS", 5)
    runner = ServiceRunner(config)
    for service in (*services, Gateway):
        runner.add_service(service)
    runner.start()
    address = f"127.0.0.1:{config['GATEWAY_PORT']}"
    wait_for(lambda: requests.get(f"http://{address}/health").json()["status"] == "healthy")
    behind = Shop(config, broker)
    yield SimpleNamespace(
        url=f"http://{address}",
        ws_url=f"ws://{address}/ws/notifications",
        port=int(config["GATEWAY_PORT"]),
        config=config,
        rpc=behind.rpc,
        sql=behind.sql,
        gateway=runner.service_map["gateway"],
    )
    behind.stop()
    runner.stop()
    for uri in config["DB_URIS"].values():
        databases.drop(uri)
    brokers.delete(broker)
    patience.undo()


@pytest.fixture
def run_gateway(shop, container_factory):
    """`run_gateway(RATE_LIMIT_SCALE="0.1")` starts another gateway of the shop: `url`, `ws_url` and its `container`."""

    def run(**settings):
        config = {**shop.config, "GATEWAY_PORT": str(free_port()), **settings}
        container = container_factory(Gateway, config)
        container.start()
        url = f"http://127.0.0.1:{config['GATEWAY_PORT']}"
        return SimpleNamespace(url=url, ws_url=f"{url.replace('http', 'ws')}/ws/notifications", container=container)

    return run


def provider(container, name):
    """The dependency provider of that name in a container."""
    return next(provider for provider in container.dependencies if provider.attr_name == name)


class Client:
    """HTTP as one user: `ada.get("/orders")` is a `requests` response."""

    def __init__(self, url, token=None, user=None):
        self.url, self.token, self.user = url, token, user
        self.session = requests.Session()
        if token:
            self.session.headers["Authorization"] = f"Bearer {token}"

    def request(self, method, path, **options):
        return self.session.request(method, self.url + path, timeout=15, **options)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, body=None, **options):
        return self.request("POST", path, json=body, **options)

    def put(self, path, body=None, **options):
        return self.request("PUT", path, json=body, **options)

    def patch(self, path, body=None, **options):
        return self.request("PATCH", path, json=body, **options)

    def delete(self, path, **options):
        return self.request("DELETE", path, **options)


@pytest.fixture
def anonymous(shop):
    return Client(shop.url)


@pytest.fixture(scope="session")
def new_customer(shop):
    """`new_customer()` registers a customer and logs them in."""

    def new(role="customer"):
        number = next(_numbers)
        account = {"email": f"forager{number}@forage.example", "username": f"forager{number}", "password": PASSWORD}
        user = requests.post(f"{shop.url}/users/register", json=account).json()
        if role != "customer":
            shop.rpc.users.set_role(email=account["email"], role=role)
        del account["username"]
        token = requests.post(f"{shop.url}/users/login", json=account).json()["access_token"]
        # On a busy machine these tests take longer than the 15 minutes of a token.
        claims = jwt.decode(token, shop.config["JWT_SECRET"], algorithms=["HS256"])
        token = jwt.encode({**claims, "exp": claims["exp"] + 24 * 3600}, shop.config["JWT_SECRET"])
        return Client(shop.url, token, user)

    return new


@pytest.fixture(scope="module")
def failures_are_forgotten(shop):
    """For tests with many failed logins, which would make the next test wait."""
    yield
    shop.sql("users", "DELETE FROM login_failures")


@pytest.fixture(scope="session")
def admin(new_customer):
    return new_customer("admin")


@pytest.fixture
def customer(new_customer):
    return new_customer()


@pytest.fixture(scope="session")
def new_product(admin):
    """`new_product(stock_quantity=3)` adds a product and returns it as the API shows it."""

    def new(**fields):
        product = {"name": "Chanterelle", "price": "29.99", "stock_quantity": 10, "sku": f"T-{uuid4().hex[:12]}"}
        answer = admin.post("/products", product | fields)
        assert answer.status_code == 201, answer.text
        return answer.json()

    return new


@pytest.fixture
def new_token(shop):
    """Signs an access token as users does. Keywords change its claims; None leaves one out."""

    def new(secret=shop.config["JWT_SECRET"], algorithm="HS256", **changes):
        now = int(time.time())
        claims = {"sub": "1", "email": "ada@forage.example", "email_verified": False, "role": "customer"}
        claims |= {"iat": now, "exp": now + 900, "jti": uuid4().hex} | changes
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, secret, algorithm=algorithm)

    return new


@pytest.fixture
def access_tokens():
    """AccessTokens with a secret of this test's own."""
    access_tokens = AccessTokens()
    access_tokens.container = SimpleNamespace(config={"JWT_SECRET": secrets.token_hex(), "JWT_SECRET_PREVIOUS": None})
    access_tokens.setup()
    return access_tokens


@pytest.fixture
def new_feed(shop):
    """`new_feed(header=[…])` opens a Feed. It is closed after the test, as other tests count the shop's sockets."""
    live_feed, feeds = provider(shop.gateway, "live_feed"), []
    before = set(live_feed._clients)

    def new_feed(**options):
        feeds.append(Feed(shop.ws_url, **options))
        return feeds[-1]

    yield new_feed
    for feed in feeds:
        feed.close()
    wait_for(lambda: not live_feed._clients - before)


@pytest.fixture
def open_feed(new_feed):
    """`open_feed(token)` opens a Feed and reads its greeting and the answer to its token."""

    def open_feed(token=None, **options):
        feed = new_feed(header=[f"Authorization: Bearer {token}"] if token else [], **options)
        assert feed.receive()["type"] == "connected"
        if token:
            assert feed.receive()["type"] == "authenticated"
        return feed

    return open_feed


# An answer of each part that gives answers, without a token.
every_answer = pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/livez", {}, 200),
        ("HEAD", "/livez", {}, 200),
        ("GET", "/livez?x=1", {}, 422),
        ("DELETE", "/livez", {}, 405),
        ("OPTIONS", "/livez", {}, 200),
        ("OPTIONS", "/mushrooms", {"Access-Control-Request-Method": "GET"}, 204),
        ("GET", "/mushrooms", {}, 404),
        ("GET", "/products/categories", {}, 200),
        # From the cache.
        ("GET", "/products/categories", {}, 200),
        ("GET", "/products/categories", {"If-None-Match": "*"}, 304),
        ("GET", "/orders", {}, 401),
        ("POST", "/users/login", {"Content-Type": "text/plain"}, 415),
        ("GET", "/ws/notifications", {}, 426),
        ("GET", "/openapi.json", {}, 200),
        ("GET", "/docs/swagger-ui.css", {}, 200),
    ],
)


def problem(answer):
    """The answer's problem details. Checks the members that all problems have."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    details = answer.json()
    assert details["status"] == answer.status_code
    assert details["request_id"] == answer.headers["X-Request-ID"]
    assert all(details[member] for member in ("type", "title", "detail")), details
    assert details["instance"].startswith("/")
    return details
