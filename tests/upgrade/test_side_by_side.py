"""An upgrade and the way back, replica by replica. At each stage all functions of the shop work.

In the two stages in which half of the services are new, each service calls a service of the other release and sends its
events to one.
"""

from types import SimpleNamespace
from uuid import uuid4

import pytest

from nameko_reliable.testing.waiting import wait_for
from tests.factories import a_product, an_account

from .mixed_shop import NEW, OLD, replicas
from .people import Person, mailed_token, open_account

pytestmark = pytest.mark.server

# {name: (the running replicas, the release of the gateway `here`, the release of the gateway `there`)}
STAGES = {
    "old": (replicas(OLD), OLD, OLD),
    "old after the migration": (replicas(OLD), OLD, OLD),
    "both": (replicas(OLD) | replicas(NEW), OLD, NEW),
    "new orders and users": (
        replicas(OLD, "products", "notifications", "gateway") | replicas(NEW, "orders", "users", "gateway"),
        NEW,
        OLD,
    ),
    "new products and notifications": (
        replicas(OLD, "orders", "users", "gateway") | replicas(NEW, "products", "notifications", "gateway"),
        OLD,
        NEW,
    ),
    "new": (replicas(NEW), NEW, NEW),
    "back to old": (replicas(OLD), OLD, OLD),
}


@pytest.fixture(scope="module", params=STAGES)
def stage(request, shop, customer, admin, regular, product, first_order):
    """here, there: the gateway where a test begins, and the one where it goes on.

    refusals: the answers other than 201 to the orders that `regular` placed during the change to this stage.
    """
    running, here, there = STAGES[request.param]
    with shop.busy(regular, product) as refusals:
        if request.param != "old":
            shop.releases[NEW].operate("migrate")
        if request.param == "back to old":
            # Like each `docker compose up`.
            shop.releases[OLD].operate("migrate")
        shop.change_to(running)
    here, there = shop.releases[here].gateway, shop.releases[there].gateway
    # Sessions continue from stage to stage.
    for person in (customer, regular, admin):
        person.refresh(here)
    return SimpleNamespace(here=here, there=there, refusals=refusals)


@pytest.fixture
def here(stage):
    return stage.here


@pytest.fixture
def there(stage):
    return stage.there


@pytest.fixture(scope="module")
def known():
    """Answers of earlier stages, by a name for the request."""
    return {}


@pytest.fixture(scope="module")
def first_order(shop, customer, admin, product):
    """An order that was placed and delivered under the old release. placed: the first answer."""
    gateway = shop.gateways[0]
    answer = customer.order(gateway, product, Idempotency_Key="the first")
    assert answer.status_code == 201, answer.text
    placed = answer.json()
    for status in ("confirmed", "shipped", "delivered"):
        assert admin.patch(gateway, f"/orders/{placed['id']}/status", {"status": status}).status_code == 200
    return SimpleNamespace(id=placed["id"], placed=placed)


def stock(gateway, product):
    return Person(an_account()).get(gateway, f"/products/{product['id']}").json()["stock_quantity"]


def test_no_order_is_refused_while_replicas_come_and_go(stage):
    assert stage.refusals == []


def test_an_order_is_pushed_to_all_gateways_and_mailed(stage, shop, customer, product):
    feeds = [customer.listen(gateway) for gateway in shop.gateways]

    orders = [customer.order(gateway, product).json()["id"] for gateway in shop.gateways]

    for feed in feeds:
        pending = set(orders)
        while pending:
            pending -= {feed.receive()["data"]["order_id"]}
        feed.close()
    for order in orders:
        shop.wait_until_mailed(customer.email, order)


def test_a_repeated_order_gets_the_first_answer(stage, shop, customer, product, first_order):
    for gateway in shop.gateways:
        repeated = customer.order(gateway, product, Idempotency_Key="the first")
        other = customer.order(gateway, product, quantity=2, Idempotency_Key="the first")

        assert (repeated.status_code, repeated.json()) == (201, first_order.placed)
        assert (other.status_code, other.json()["type"]) == (422, "key-reused")


def test_an_order_placed_at_one_gateway_can_be_repeated_at_the_other(shop, here, there, customer, product):
    key = uuid4().hex
    placed = customer.order(here, product, Idempotency_Key=key)

    repeated = customer.order(there, product, Idempotency_Key=key)

    assert (repeated.status_code, repeated.json()) == (201, placed.json())


def test_an_order_is_confirmed_shipped_and_delivered(shop, here, there, customer, admin, product):
    order = customer.order(here, product).json()

    steps = [
        admin.patch(gateway, f"/orders/{order['id']}/status", {"status": status})
        for gateway, status in ((there, "confirmed"), (here, "shipped"), (there, "delivered"))
    ]

    assert [step.status_code for step in steps] == [200, 200, 200]
    history = customer.get(here, f"/orders/{order['id']}").json()["history"]
    assert [(step["status"], step["by"]) for step in history] == [
        ("pending", "customer"),
        ("confirmed", "admin"),
        ("shipped", "admin"),
        ("delivered", "admin"),
    ]


def test_a_cancelled_order_returns_its_stock(shop, here, there, customer, product):
    shop.wait_until_settled()
    before = stock(here, product)
    order = customer.order(here, product, quantity=7).json()
    assert stock(here, product) == before - 7

    cancelled = customer.patch(there, f"/orders/{order['id']}/status", {"status": "cancelled"})

    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    wait_for(lambda: [stock(gateway, product) for gateway in shop.gateways] == [before] * len(shop.gateways))


def refusals(gateway, customer, admin, product, order_id, notification_id):
    """The answers to requests that must be refused, one for each row of REFUSALS."""

    def items(**line):
        return {"items": [{"product_id": product["id"], "quantity": 1, **line}]}

    def stranger():
        return Person(an_account())

    missing_id = 10**9
    path = f"/products/{product['id']}"
    known_account = {**an_account(), "email": customer.email}
    weak_account = {**an_account(), "password": "password"}
    return [
        customer.post(gateway, "/orders", items(quantity=4)),
        customer.post(gateway, "/orders", items(unit_price="0.01")),
        customer.post(gateway, "/orders", items(product_id=missing_id)),
        customer.post(gateway, "/orders", items(quantity=0)),
        customer.post(gateway, "/orders", items(discount="1.00")),
        admin.post(gateway, "/orders", items(quantity=1001)),
        customer.patch(gateway, f"/orders/{order_id}/status", {"status": "shipped"}),
        admin.patch(gateway, f"/orders/{order_id}/status", {"status": "pending"}),
        admin.patch(gateway, f"/orders/{order_id}/status", {"status": "lost"}),
        customer.get(gateway, f"/orders/{missing_id}"),
        admin.post(gateway, "/products", {**a_product(), "sku": product["sku"]}),
        admin.post(gateway, "/products", a_product(price="-1")),
        admin.patch(gateway, path, {"name": "Morel"}, If_Match='"999-0"'),
        admin.patch(gateway, path, {"price": 1.5}),
        admin.put(gateway, path, {"name": "Morel"}),
        admin.patch(gateway, f"{path}/stock", {"delta": -4}),
        admin.patch(gateway, f"{path}/stock", {}),
        admin.delete(gateway, f"/products/{missing_id}"),
        stranger().get(gateway, f"/products/{missing_id}"),
        stranger().get(gateway, "/products?limit=0"),
        stranger().post(gateway, "/users/register", known_account),
        stranger().post(gateway, "/users/register", weak_account),
        stranger().post(gateway, "/users/register", {}),
        stranger().post(gateway, "/users/login", {"email": an_account()["email"], "password": "boletus"}),
        stranger().post(gateway, "/auth/refresh", Cookie="forage_refresh=guessed"),
        stranger().post(gateway, "/users/verify-email", {"token": "guessed"}),
        stranger().get(gateway, "/orders"),
        customer.get(gateway, "/users"),
        customer.delete(gateway, f"/users/me/sessions/{missing_id}"),
        admin.patch(gateway, f"/users/{missing_id}", {"is_active": False}),
        admin.patch(gateway, "/users/2", {"role": "customer"}),
        customer.get(gateway, f"/notifications/{missing_id}"),
        customer.post(gateway, f"/notifications/retry/{notification_id}"),
        admin.post(gateway, "/admin/parked/notifications/0/replay"),
    ]


REFUSALS = [
    (409, "insufficient-stock"),
    (409, "price-changed"),
    (404, "product-not-found"),
    (422, "invalid-input"),
    (422, "invalid-input"),
    (409, "too-many-open-orders"),
    (403, "not-allowed"),
    (409, "illegal-transition"),
    (422, "invalid-input"),
    (404, "order-not-found"),
    (409, "taken"),
    (422, "invalid-input"),
    (412, "stale-version"),
    (422, "invalid-input"),
    (422, "invalid-input"),
    (409, "insufficient-stock"),
    (422, "invalid-input"),
    (404, "product-not-found"),
    (404, "product-not-found"),
    (422, "invalid-input"),
    (409, "taken"),
    (422, "invalid-input"),
    (422, "invalid-input"),
    (401, "invalid-credentials"),
    (401, "invalid-session"),
    (400, "invalid-token"),
    (401, "unauthenticated"),
    (403, "access-denied"),
    (404, "session-not-found"),
    (404, "user-not-found"),
    (409, "last-admin"),
    (404, "notification-not-found"),
    (409, "not-failed"),
    (404, "parked-message-not-found"),
]


@pytest.fixture(scope="module")
def scarce(shop, admin):
    """A product that is neither sold nor edited."""
    return admin.post(shop.gateways[0], "/products", a_product(stock_quantity=3)).json()


def test_every_stage_refuses_a_request_for_the_same_reason(stage, shop, customer, admin, scarce, first_order, known):
    [(notification_id,)] = shop.sql(
        "notifications", "SELECT id FROM notifications WHERE order_id = %s AND sequence = 1", first_order.id
    )
    for gateway in shop.gateways:
        answers = refusals(gateway, customer, admin, scarce, first_order.id, notification_id)

        problems = [answer.json() for answer in answers]
        assert [
            (answer.status_code, problem["type"]) for answer, problem in zip(answers, problems, strict=True)
        ] == REFUSALS
        # The sentences may differ between releases.
        for problem in problems:
            del problem["request_id"], problem["detail"]
            problem["errors"] = sorted(problem.get("errors", ()))
        assert problems == known.setdefault("refusals", problems)


def test_every_stage_gives_the_same_answers_to_reads(stage, shop, customer, admin, product, first_order, known):
    shop.wait_until_settled()
    wanted = [
        (customer, "/users/me"),
        (customer, f"/orders/{first_order.id}"),
        (customer, "/orders?limit=3&skip=1"),
        (customer, "/orders?status=delivered"),
        (customer, f"/notifications?order_id={first_order.id}"),
        (customer, "/notifications?page=1&page_size=3"),
        (admin, "/products?limit=100&sort_by=name"),
        (admin, f"/products?name={product['sku'].lower()}"),
        (admin, f"/products/{product['id']}"),
        (admin, "/products/categories"),
        (admin, f"/orders?all=true&q={customer.email}&limit=2"),
        (admin, "/orders?all=true&limit=2"),
        (admin, "/orders?all=true&status=delivered&limit=2"),
        (admin, "/orders?all=true&from=2020-01-01&to=2020-12-31"),
        (admin, "/notifications?all=true&status=failed"),
        (admin, "/users?limit=2"),
        (admin, f"/users?q={customer.email}&role=customer"),
        (admin, "/admin/summary?days=2"),
        (admin, "/admin/parked"),
    ]
    for reader, path in wanted:
        # Twice, since there may be two replicas of each service.
        read = [reader.get(gateway, path) for gateway in shop.gateways * 2]

        assert {answer.status_code for answer in read} == {200}, path
        for answer in read[1:]:
            assert answer.json() == read[0].json(), path
            assert answer.headers.get("X-Total-Count") == read[0].headers.get("X-Total-Count"), path
            assert answer.headers.get("Link") == read[0].headers.get("Link"), path
    delivered = customer.get(shop.gateways[-1], f"/orders/{first_order.id}").json()
    assert delivered == known.setdefault("delivered", delivered)


def test_a_product_edited_at_one_gateway_is_shown_by_the_other(shop, here, there, admin):
    created = admin.post(here, "/products", a_product(category="Fresh"))
    path = f"/products/{created.json()['id']}"
    visitor = Person(an_account())
    read = visitor.get(there, path)
    assert (created.status_code, read.json()) == (201, created.json())

    renamed = admin.patch(here, path, {"name": "Parasol"}, If_Match=read.headers["ETag"])
    stale = admin.patch(there, path, {"name": "Puffball"}, If_Match=read.headers["ETag"])
    stocked = admin.patch(there, f"{path}/stock", {"delta": 5})
    replaced = admin.put(here, path, {"name": "Shaggy parasol", "price": "8.00", "description": "Cook it."})

    assert [answer.status_code for answer in (renamed, stale, stocked, replaced)] == [200, 412, 200, 200]
    assert (replaced.json()["stock_quantity"], replaced.json()["category"]) == (15, None)
    wait_for(lambda: visitor.get(there, path).json() == replaced.json())
    assert admin.delete(there, path).status_code == 204
    wait_for(lambda: visitor.get(here, path).status_code == 404)


def test_a_change_of_stock_is_pushed_to_the_sockets_of_all_gateways(shop, here, customer, admin):
    product = admin.post(here, "/products", a_product(stock_quantity=10)).json()
    feeds = [customer.listen(gateway) for gateway in shop.gateways]
    for feed in feeds:
        feed.watch(product)

    admin.patch(here, f"/products/{product['id']}/stock", {"delta": -4})

    for feed in feeds:
        # The hint of the new product may come after its answer.
        assert 6 in (feed.receive_until("product")["data"]["stock_quantity"] for _ in range(2))
        feed.close()


def test_a_session_can_be_refreshed_at_every_stage(stage, shop, customer):
    for gateway in shop.gateways:
        customer.refresh(gateway)

        for any_gateway in shop.gateways:
            assert customer.get(any_gateway, "/users/me").json()["email"] == customer.email


def test_a_customer_registers_and_resets_the_password(shop, here, there):
    person = open_account(shop.smtp, here, there)
    assert person.post(there, "/users/password-reset", {"email": person.email}).status_code == 202
    token = mailed_token(shop.smtp, person, "user.password_reset_requested")
    person.account["password"] = "lactarius deliciosus"

    reset = person.post(here, "/users/password-reset/confirm", {"token": token, "password": "lactarius deliciosus"})

    assert reset.status_code == 204
    assert person.post(there, "/auth/refresh").status_code == 401
    person.log_in(there)
    sessions = person.get(here, "/users/me/sessions").json()
    assert [session["current"] for session in sessions] == [True]
    assert person.post(here, "/auth/logout").status_code == 204
    assert person.post(there, "/auth/refresh").status_code == 401


def test_a_sign_in_begun_at_one_gateway_is_finished_at_the_other(shop, here, there, sign_in_provider):
    browser, email = Person(an_account()), an_account()["email"]
    begun = browser.get(here, "/auth/google")
    code, state = sign_in_provider.log_in(begun.headers["Location"], email=email)

    finished = browser.get(there, f"/auth/google/callback?code={code}&state={state}")

    page, _, browser.token = finished.headers["Location"].partition("#token=")
    assert page == "http://localhost:8080/auth/callback"
    assert browser.get(here, "/users/me").json()["email"] == email


def test_an_admin_retries_a_refused_mail(shop, here, there, customer, product):
    # No other mail to this customer may be refused.
    shop.wait_until_settled()
    shop.smtp.reject(customer.email)
    order = customer.order(here, product).json()
    path = f"/notifications?order_id={order['id']}"
    [failed] = wait_for(lambda: customer.get(here, f"{path}&status=failed").json()["notifications"])
    shop.smtp.accept_all()

    retried = customer.post(there, f"/notifications/retry/{failed['id']}")

    assert (retried.status_code, retried.json()["status"]) == (200, "sent")


def test_an_unreadable_message_is_parked_and_discarded(shop, here, there, admin):
    for subscriber in ("notifications.confirm_order", "products.commit_reservation"):
        shop.broker.publish("no JSON", queue=f"evt-orders-order.created--{subscriber}")

    def both_are_parked():
        messages = admin.get(here, "/admin/parked").json()["messages"]
        return messages if {each["service"] for each in messages} == {"notifications", "products"} else None

    parked = wait_for(both_are_parked)
    assert {(message["reason"], message["attempts"], message["body"]) for message in parked} == {
        ("not JSON", 1, "no JSON")
    }

    for message in parked:
        path = f"/admin/parked/{message['service']}/{message['id']}"
        assert admin.delete(there, path).status_code == 204
    assert admin.get(here, "/admin/parked").json()["total"] == 0


def test_no_event_is_lost_or_handled_twice(stage, shop):
    shop.wait_until_settled()
