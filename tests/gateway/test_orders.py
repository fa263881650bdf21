from datetime import date, timedelta
from uuid import uuid4

import eventlet
import jwt
import pytest

from nameko_reliable.testing.waiting import wait_for

from .conftest import Client, problem


def cart(*lines):
    return {"items": [{"product_id": product["id"], "quantity": quantity} for product, quantity in lines]}


@pytest.fixture
def order(customer, new_product):
    """A new order of the customer."""
    return customer.post("/orders", cart((new_product(), 1))).json()


def test_an_order_is_placed_and_found_at_its_address(customer, new_product):
    cep, morel = new_product(price="10.00"), new_product(price="0.99")

    placed = customer.post("/orders", cart((cep, 2), (morel, 3)))
    found = customer.get(placed.headers["Location"])

    order = placed.json()
    assert placed.status_code == 201
    assert placed.headers["Location"] == f"/orders/{order['id']}"
    assert placed.headers["Cache-Control"] == "no-store"
    assert found.json() == order
    assert order.keys() == {
        "id",
        "user_id",
        "user_email",
        "status",
        "total_amount",
        "created_at",
        "updated_at",
        "items",
        "history",
    }
    assert (order["status"], order["total_amount"]) == ("pending", "22.97")
    assert (order["user_id"], order["user_email"]) == (customer.user["id"], customer.user["email"])
    assert [(line["product_id"], line["quantity"], line["subtotal"]) for line in order["items"]] == [
        (cep["id"], 2, "20.00"),
        (morel["id"], 3, "2.97"),
    ]
    assert order["items"][0].keys() == {
        "id",
        "order_id",
        "product_id",
        "product_name",
        "product_price",
        "quantity",
        "subtotal",
        "created_at",
    }
    assert [step.keys() for step in order["history"]] == [{"status", "at", "by"}]


def test_an_unknown_product_cannot_be_ordered(customer):
    refusal = customer.post("/orders", {"items": [{"product_id": 987654321, "quantity": 1}]})

    assert refusal.status_code == 404
    assert problem(refusal)["product_id"] == 987654321


def test_an_order_beyond_the_stock_is_refused(customer, anonymous, new_product):
    plenty, scarce = new_product(stock_quantity=5), new_product(stock_quantity=2)

    refusal = customer.post("/orders", cart((plenty, 1), (scarce, 3)))

    details = problem(refusal)
    assert refusal.status_code == 409
    assert details["type"] == "insufficient-stock"
    assert (details["product_id"], details["requested"], details["available"]) == (scarce["id"], 3, 2)
    assert anonymous.get(f"/products/{plenty['id']}").json()["stock_quantity"] == 5


def test_an_outdated_price_is_refused(customer, admin, new_product):
    product = new_product(price="3.00")
    admin.patch(f"/products/{product['id']}", {"price": "3.50"})
    line = {"product_id": product["id"], "quantity": 1}

    refusal = customer.post("/orders", {"items": [line | {"unit_price": "3.00"}]})
    accepted = customer.post("/orders", {"items": [line | {"unit_price": "3.50"}]})

    details = problem(refusal)
    assert (details["status"], details["type"]) == (409, "price-changed")
    assert (details["product_id"], details["given"], details["current"]) == (product["id"], "3.00", "3.50")
    assert accepted.status_code == 201


@pytest.mark.parametrize(
    "items",
    [
        None,
        [],
        {},
        "all",
        [None],
        [[]],
        [{}],
        [{"product_id": 1}],
        [{"product_id": 1, "quantity": 0}],
        [{"product_id": 1, "quantity": -1}],
        [{"product_id": 1, "quantity": 10_001}],
        [{"product_id": 1, "quantity": 1.5}],
        [{"product_id": 1, "quantity": "1"}],
        [{"product_id": 1, "quantity": True}],
        [{"product_id": 0, "quantity": 1}],
        [{"product_id": 2**63, "quantity": 1}],
        [{"product_id": "1", "quantity": 1}],
        [{"product_id": 1, "quantity": 1, "unit_price": 3}],
        [{"product_id": 1, "quantity": 1, "price": "3.00"}],
        [{"product_id": 1, "quantity": 1}] * 101,
    ],
    ids=lambda items: repr(items)[:50],
)
def test_an_order_out_of_bounds_is_refused(customer, items):
    answer = customer.post("/orders", {"items": items})

    assert answer.status_code == 422
    assert "items" in problem(answer)["errors"]


def test_the_same_key_and_body_give_the_first_order_again(customer, anonymous, new_product):
    product = new_product(stock_quantity=10)
    key = {"Idempotency-Key": f"!~ {uuid4()}"}

    first = customer.post("/orders", cart((product, 2)), headers=key)
    again = customer.post("/orders", cart((product, 2)), headers=key)

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert anonymous.get(f"/products/{product['id']}").json()["stock_quantity"] == 8


def test_the_same_key_with_another_body_is_refused(customer, new_product):
    product = new_product()
    key = {"Idempotency-Key": str(uuid4())}
    customer.post("/orders", cart((product, 1)), headers=key)

    refusal = customer.post("/orders", cart((product, 2)), headers=key)

    assert refusal.status_code == 422
    assert problem(refusal)["type"] == "key-reused"


def test_each_request_without_a_key_makes_a_new_order(customer, new_product):
    product = new_product()

    first, second = (customer.post("/orders", cart((product, 1))).json() for _ in range(2))

    assert first["id"] != second["id"]


@pytest.mark.parametrize("key", [b"", b"x" * 256, "ключ".encode(), b"a\tb"])
def test_a_key_out_of_bounds_is_refused(customer, new_product, key):
    refusal = customer.post("/orders", cart((new_product(), 1)), headers={"Idempotency-Key": key})

    assert refusal.status_code == 422
    assert "Idempotency-Key" in problem(refusal)["errors"]


def test_a_repeat_of_a_request_in_flight_gets_retry_after(customer, new_product):
    product = new_product(stock_quantity=100)
    key = {"Idempotency-Key": str(uuid4())}

    def order():
        return customer.post("/orders", cart((product, 1)), headers=key)

    answers = [greenlet.wait() for greenlet in [eventlet.spawn(order) for _ in range(10)]]

    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    for answer in answers:
        if answer.status_code == 409:
            assert problem(answer)["type"] == "request-in-flight"
            assert int(answer.headers["Retry-After"]) >= 1


def test_a_customer_sees_their_own_orders_newest_first(customer, new_customer, new_product):
    product = new_product()
    ids = [customer.post("/orders", cart((product, 1))).json()["id"] for _ in range(3)]
    other = new_customer()
    other.post("/orders", cart((product, 1)))

    everything = customer.get("/orders")
    page = customer.get("/orders", params={"skip": 1, "limit": 1})

    assert [order["id"] for order in everything.json()] == ids[::-1]
    assert everything.headers["X-Total-Count"] == "3"
    assert [order["id"] for order in page.json()] == [ids[1]]
    assert page.headers["X-Total-Count"] == "3"


def test_orders_are_filtered_by_status(customer, order):
    assert [found["id"] for found in customer.get("/orders?status=pending").json()] == [order["id"]]
    assert customer.get("/orders?status=shipped").json() == []


def test_an_admin_finds_the_orders_of_all_customers(admin, customer, order):
    email = customer.user["email"]
    day = date.fromisoformat(order["created_at"][:10])
    today, tomorrow = day.isoformat(), (day + timedelta(days=1)).isoformat()

    def found(**query):
        return [found["id"] for found in admin.get("/orders", params={"all": "true"} | query).json()]

    assert order["id"] in found()
    assert found(q=email[:-3].upper()) == [order["id"]]
    assert order["id"] in found(q=str(order["id"]))
    assert found(q=email, **{"from": today, "to": today}) == [order["id"]]
    assert found(q=email, to=order["created_at"]) == []
    assert found(q=email, **{"from": tomorrow}) == []
    assert order["id"] not in [found["id"] for found in admin.get("/orders").json()]


@pytest.mark.parametrize("query", ["q=ada", "from=2026-01-01", "to=2026-01-01", "all=false&q=ada"])
def test_a_search_needs_all_true(customer, query):
    answer = customer.get(f"/orders?{query}")

    assert answer.status_code == 422


@pytest.mark.parametrize("query", ["skip=-1", "limit=0", "limit=101", "status=lost", "all=yes", "from=x", "user_id=3"])
def test_a_list_out_of_bounds_is_refused(admin, query):
    answer = admin.get(f"/orders?{query}")

    assert answer.status_code == 422
    assert query.split("=")[0] in problem(answer)["errors"]


def test_an_order_is_shown_only_to_its_customer_and_admins(order, customer, admin, new_customer):
    path = f"/orders/{order['id']}"
    stranger = new_customer()

    assert customer.get(path).json() == admin.get(path).json() == order
    assert problem(stranger.get(path))["type"] == "order-not-found"
    assert problem(stranger.patch(f"{path}/status", {"status": "cancelled"}))["type"] == "order-not-found"
    assert problem(customer.get("/orders/987654321"))["status"] == 404


def test_an_order_goes_through_its_steps_and_records_them(admin, order):
    path = f"/orders/{order['id']}/status"

    for status in ("confirmed", "shipped", "delivered"):
        moved = admin.patch(path, {"status": status})
        assert moved.status_code == 200
        assert moved.json()["status"] == status

    assert [step["status"] for step in moved.json()["history"]] == ["pending", "confirmed", "shipped", "delivered"]


def test_an_illegal_step_is_refused(admin, order):
    refusal = admin.patch(f"/orders/{order['id']}/status", {"status": "delivered"})

    assert refusal.status_code == 409
    assert problem(refusal)["type"] == "illegal-transition"
    assert (problem(refusal)["old_status"], problem(refusal)["new_status"]) == ("pending", "delivered")


def test_a_customer_may_only_cancel(customer, order):
    path = f"/orders/{order['id']}/status"

    refusal = customer.patch(path, {"status": "confirmed"})
    cancelled = customer.patch(path, {"status": "cancelled"})

    assert refusal.status_code == 403
    assert problem(refusal)["type"] == "not-allowed"
    assert cancelled.json()["status"] == "cancelled"


@pytest.mark.parametrize("body", [{}, {"status": "lost"}, {"status": 3}, {"status": "cancelled", "by": "me"}, [], "x"])
def test_an_unknown_status_is_refused(customer, order, body):
    answer = customer.patch(f"/orders/{order['id']}/status", body)

    assert answer.status_code == 422


def test_an_order_beyond_the_limit_of_open_orders_is_refused_with_the_numbers(customer):
    heap = {"items": [{"product_id": number, "quantity": 10_000} for number in range(1, 22)]}

    answer = customer.post("/orders", heap)

    assert answer.status_code == 409
    details = problem(answer)
    assert details["type"] == "too-many-open-orders"
    # Multiplied by the tests' RATE_LIMIT_SCALE.
    assert (details["most_orders"], details["most_units"]) == (20_000, 200_000)
    assert "0 open orders with 0 units, and this one has 210000; 20000 orders with 200000 units" in details["detail"]
    # Accounts with a confirmed address get the same sentence.
    assert details["detail"].endswith("An account whose address is not confirmed is allowed fewer.")


# Mails to proven and unproven addresses


def order_mails(smtp, person):
    mails = smtp.messages(to=person.user["email"])
    return [mail for mail in mails if mail["X-Forage-Event"] in ("order.created", "order.status.updated")]


def order_and_cancel(person, product, times):
    for _ in range(times):
        order = person.post("/orders", cart((product, 1))).json()
        assert person.patch(f"/orders/{order['id']}/status", {"status": "cancelled"}).status_code == 200


def wait_until_notified(person, number):
    """Wait until the person has `number` notifications, and none of their mails is pending."""
    wait_for(lambda: person.get("/notifications").json()["total"] == number)
    wait_for(lambda: person.get("/notifications?status=pending").json()["total"] == 0)


def test_ordering_and_cancelling_in_a_loop_sends_six_mails_to_an_unproven_address(customer, new_product, smtp):
    order_and_cancel(customer, new_product(), times=10)

    wait_until_notified(customer, 20)
    assert len(order_mails(smtp, customer)) == 6
    listed = customer.get("/notifications").json()["notifications"]
    assert len({row["error_message"] for row in listed}) == 2
    assert sum(row["error_message"] is not None for row in listed) == 14


def test_a_proven_address_gets_a_mail_for_every_step(shop, customer, new_product, smtp, new_token):
    proven = Client(shop.url, new_token(**claims_of(customer) | {"email_verified": True}), customer.user)
    ordered_before = customer.post("/orders", cart((new_product(), 1))).json()

    order_and_cancel(proven, new_product(), times=4)
    proven.patch(f"/orders/{ordered_before['id']}/status", {"status": "cancelled"})

    wait_until_notified(proven, 10)
    assert len(order_mails(smtp, customer)) == 10


def claims_of(person):
    return jwt.decode(person.token, options={"verify_signature": False})
