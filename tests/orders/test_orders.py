from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from contracts.orders import IllegalTransition, OrderCreated, OrderNotFound
from contracts.products import InsufficientStock, PriceChanged, ProductNotFound
from contracts.types import InvalidInput, NotAllowed
from nameko_reliable import pool
from nameko_reliable.testing.waiting import wait_for
from services.orders import Orders
from services.products import Products
from tests.factories import a_customer, a_line, a_product, place_order
from tests.infrastructure.days import wait_for_a_day_with_time_left
from tests.shop import refusal_of


@pytest.fixture
def orders(shop):
    return shop.rpc.orders


@pytest.fixture
def product(shop):
    return shop.rpc.products.create_product(**a_product(name="Morels", price="14.50", stock_quantity=10))


@pytest.fixture
def customer():
    return a_customer()


def stock(shop, product):
    return shop.rpc.products.get_product(product_id=product["id"], include_inactive=True)["stock_quantity"]


def orders_of(shop, customer):
    return shop.rpc.orders.list_orders(user_id=customer["user_id"])


# Placing


def test_a_placed_order_has_its_items_and_prices(shop, product, customer):
    other = shop.rpc.products.create_product(**a_product(name="Porcini", price="0.01"))

    order = place_order(shop.rpc, a_line(other, 5), a_line(product, 2), customer=customer)

    assert {name: order[name] for name in ("user_id", "user_email", "status", "total_amount")} == {
        **customer,
        "status": "pending",
        "total_amount": "29.05",
    }
    assert [
        (item["product_id"], item["product_name"], item["product_price"], item["quantity"], item["subtotal"])
        for item in order["items"]
    ] == [(product["id"], "Morels", "14.50", 2, "29.00"), (other["id"], "Porcini", "0.01", 5, "0.05")]
    assert {item["order_id"] for item in order["items"]} == {order["id"]}
    assert [(step["status"], step["by"]) for step in order["history"]] == [("pending", "customer")]
    assert order["created_at"] == order["updated_at"] == order["history"][0]["at"]
    assert shop.rpc.orders.get_order(order_id=order["id"]) == order
    assert (stock(shop, product), stock(shop, other)) == (8, 5)


def test_an_order_keeps_the_name_and_price_it_was_sold_at(shop, product):
    order = place_order(shop.rpc, a_line(product))

    shop.rpc.products.update_product(product_id=product["id"], name="Renamed", price="99")

    assert shop.rpc.orders.get_order(order_id=order["id"]) == order


def test_lines_of_one_product_are_merged(shop, product):
    order = place_order(shop.rpc, a_line(product, 2), a_line(product, 3, unit_price="14.50"))

    assert [(item["product_id"], item["quantity"]) for item in order["items"]] == [(product["id"], 5)]
    assert stock(shop, product) == 5


@pytest.mark.parametrize(
    "lines",
    (
        ({"quantity": 9_999}, {"quantity": 2}),
        ({"unit_price": "14.50"}, {"unit_price": "14.51"}),
        ({"quantity": 0},),
        ({"unit_price": 14.5},),
        (),
    ),
)
def test_an_order_out_of_bounds_is_refused_before_anything_is_reserved(shop, product, customer, lines):
    with pytest.raises(InvalidInput) as refusal:
        place_order(shop.rpc, *[a_line(product, **line) for line in lines], customer=customer)

    assert set(refusal.value.errors) == {"items"}
    assert stock(shop, product) == 10


@pytest.mark.parametrize(
    "changes",
    ({"user_id": 0}, {"user_id": "7"}, {"user_email": "ada"}, {"idempotency_key": ""}, {"email_verified": "yes"}),
)
def test_an_order_without_a_valid_customer_or_key_is_refused(shop, product, changes):
    placement = {**a_customer(), "items": [a_line(product)], **changes}

    with pytest.raises(InvalidInput) as refusal:
        shop.rpc.orders.create_order(**placement)

    assert set(refusal.value.errors) == set(changes)


def test_an_order_beyond_the_stock_is_refused_and_reserves_nothing(shop, product, customer):
    other = shop.rpc.products.create_product(**a_product())

    with pytest.raises(InsufficientStock) as refusal:
        place_order(shop.rpc, a_line(product, 11), a_line(other), customer=customer)

    assert (refusal.value.product_id, refusal.value.requested, refusal.value.available) == (product["id"], 11, 10)
    assert (stock(shop, product), stock(shop, other)) == (10, 10)
    assert orders_of(shop, customer)["total"] == 0


def test_an_order_at_an_outdated_price_is_refused(shop, product, customer):
    shop.rpc.products.update_product(product_id=product["id"], price="15")

    with pytest.raises(PriceChanged) as refusal:
        place_order(shop.rpc, a_line(product, unit_price="14.50"), customer=customer)

    assert (refusal.value.given, refusal.value.current) == (Decimal("14.50"), Decimal("15.00"))
    assert orders_of(shop, customer)["total"] == 0


def test_an_order_at_the_current_price_is_placed(shop, product):
    assert place_order(shop.rpc, a_line(product, unit_price="14.5"))["total_amount"] == "14.50"


def test_an_order_of_an_unknown_or_inactive_product_is_refused(shop, product, customer):
    gone = shop.rpc.products.create_product(**a_product())
    shop.rpc.products.delete_product(product_id=gone["id"])

    for missing in ({"id": 2**62}, gone):
        with pytest.raises(ProductNotFound) as refusal:
            place_order(shop.rpc, a_line(product), a_line(missing), customer=customer)
        assert refusal.value.product_id == missing["id"]

    assert stock(shop, product) == 10
    assert orders_of(shop, customer)["total"] == 0


def test_an_order_above_the_highest_total_releases_its_stock(shop, customer):
    dear = shop.rpc.products.create_product(**a_product(price="9999999999.99"))

    with pytest.raises(InvalidInput):
        place_order(shop.rpc, a_line(dear, 2), customer=customer)

    wait_for(lambda: stock(shop, dear) == 10)
    assert orders_of(shop, customer)["total"] == 0


# The event


def test_an_order_and_its_event_are_committed_together(shop, product, events_of):
    order = place_order(shop.rpc, a_line(product, 2))

    [event] = events_of(order)
    assert type(event) is OrderCreated
    assert (event.order_id, event.sequence, event.user_id, event.user_email) == (
        order["id"],
        1,
        order["user_id"],
        order["user_email"],
    )
    assert (event.status, event.total_amount) == ("pending", Decimal("29.00"))
    assert [(line.product_name, line.quantity, line.subtotal) for line in event.items] == [
        ("Morels", 2, Decimal("29.00"))
    ]


def test_a_status_change_and_its_event_are_committed_together(shop, product, events_of):
    order = place_order(shop.rpc, a_line(product, 2))

    shop.rpc.orders.update_status(order_id=order["id"], status="confirmed")
    shop.rpc.orders.update_status(order_id=order["id"], status="cancelled")

    created, confirmed, cancelled = events_of(order)
    steps = (confirmed, cancelled)
    assert [(step.sequence, step.old_status, step.new_status, step.status) for step in steps] == [
        (2, "pending", "confirmed", "confirmed"),
        (3, "confirmed", "cancelled", "cancelled"),
    ]
    assert {step.reservation_id for step in steps} == {created.reservation_id}
    assert [item.product_name for item in confirmed.items] == ["Morels"]


def test_the_events_of_an_order_show_whether_the_customers_address_is_proven(shop, product, events_of):
    unproven, proven_since = a_customer(), a_customer()
    steps = [
        # By the back office: the flag is about the admin's address.
        (unproven, False, {"status": "confirmed", "email_verified": True}),
        (proven_since, False, {"status": "cancelled", "email_verified": True, "user_id": proven_since["user_id"]}),
        (a_customer(), True, {"status": "confirmed"}),
    ]
    said = []

    for customer, email_verified, step in steps:
        order = shop.rpc.orders.create_order(**customer, email_verified=email_verified, items=[a_line(product)])
        shop.rpc.orders.update_status(order_id=order["id"], **step)
        said.append([event.email_verified for event in events_of(order)])

    assert said == [[False, False], [False, True], [True, True]]


def test_a_refused_order_and_a_refused_step_leave_no_event(shop, product, customer, events_of):
    order = place_order(shop.rpc, a_line(product))

    refusals = [
        refusal_of(shop.rpc.orders.update_status.call_async(order_id=order["id"], status="delivered")),
        refusal_of(
            shop.rpc.orders.create_order.call_async(**customer, items=[a_line(product, 10)], idempotency_key="key")
        ),
    ]

    assert [type(refusal) for refusal in refusals] == [IllegalTransition, InsufficientStock]
    assert [type(event) for event in events_of(order)] == [OrderCreated]
    created = [event for event in shop.outbox(Orders).pending() if type(event) is OrderCreated]
    assert customer["user_id"] not in [event.user_id for event in created]


# Steps


def test_an_order_takes_every_step_and_keeps_its_history(shop, product):
    order = place_order(shop.rpc, a_line(product))

    for status in ("confirmed", "shipped", "delivered"):
        moved = shop.rpc.orders.update_status(order_id=order["id"], status=status)
        assert moved["status"] == status

    assert moved == shop.rpc.orders.get_order(order_id=order["id"])
    assert [(step["status"], step["by"]) for step in moved["history"]] == [
        ("pending", "customer"),
        ("confirmed", "admin"),
        ("shipped", "admin"),
        ("delivered", "admin"),
    ]
    assert moved["updated_at"] == moved["history"][-1]["at"] > moved["created_at"]
    assert [step["at"] for step in moved["history"]] == sorted(step["at"] for step in moved["history"])


def test_cancelling_releases_the_stock(shop, product):
    order = place_order(shop.rpc, a_line(product, 4))

    shop.rpc.orders.update_status(order_id=order["id"], status="cancelled", user_id=order["user_id"])

    wait_for(lambda: stock(shop, product) == 10)


def test_cancelling_a_shipped_order_is_refused(shop, product):
    order = place_order(shop.rpc, a_line(product, 4))
    for status in ("confirmed", "shipped"):
        shop.rpc.orders.update_status(order_id=order["id"], status=status)

    with pytest.raises(IllegalTransition):
        shop.rpc.orders.update_status(order_id=order["id"], status="cancelled")

    assert stock(shop, product) == 6


def test_a_customer_may_only_cancel(shop, product):
    order = place_order(shop.rpc, a_line(product))

    for status in ("pending", "confirmed", "shipped", "delivered"):
        with pytest.raises(NotAllowed):
            shop.rpc.orders.update_status(order_id=order["id"], status=status, user_id=order["user_id"])
    cancelled = shop.rpc.orders.update_status(order_id=order["id"], status="cancelled", user_id=order["user_id"])

    assert cancelled["history"][-1]["by"] == "customer"


def test_the_order_of_another_customer_is_not_found(shop, product, customer):
    order = place_order(shop.rpc, a_line(product))

    for call in (
        shop.rpc.orders.get_order.call_async(order_id=order["id"], user_id=customer["user_id"]),
        shop.rpc.orders.update_status.call_async(order_id=order["id"], status="cancelled", user_id=customer["user_id"]),
        shop.rpc.orders.update_status.call_async(order_id=order["id"], status="shipped", user_id=customer["user_id"]),
        shop.rpc.orders.get_order.call_async(order_id=2**62),
    ):
        assert isinstance(refusal_of(call), OrderNotFound)
    assert shop.rpc.orders.get_order(order_id=order["id"]) == order


@pytest.mark.parametrize("status", ("composted", "", None, 5, ["shipped"]))
def test_an_unknown_status_is_refused(shop, product, status):
    order = place_order(shop.rpc, a_line(product))

    with pytest.raises(InvalidInput):
        shop.rpc.orders.update_status(order_id=order["id"], status=status)


@pytest.mark.parametrize("order_id", (0, "1", None, True, 2**63, [1]))
def test_an_invalid_id_is_refused(shop, order_id):
    for call in (
        shop.rpc.orders.get_order.call_async(order_id=order_id),
        shop.rpc.orders.update_status.call_async(order_id=order_id, status="cancelled"),
    ):
        assert isinstance(refusal_of(call), InvalidInput)


def test_one_of_many_concurrent_steps_is_taken(shop, product):
    order = place_order(shop.rpc, a_line(product, 4))

    calls = [
        shop.rpc.orders.update_status.call_async(order_id=order["id"], status=status)
        for status in ("cancelled", "confirmed", "cancelled", "confirmed", "cancelled")
    ]

    refusals = [refusal_of(call) for call in calls]
    order = shop.rpc.orders.get_order(order_id=order["id"])
    taken = [step["status"] for step in order["history"]]
    assert taken in (["pending", "cancelled"], ["pending", "confirmed", "cancelled"])
    assert refusals.count(None) == len(taken) - 1
    assert sum(isinstance(refusal, IllegalTransition) for refusal in refusals) == 5 - refusals.count(None)
    wait_for(lambda: stock(shop, product) == 10)


def test_a_redelivered_step_is_taken_once_with_the_same_answer(shop, product):
    order = place_order(shop.rpc, a_line(product, 4))

    first, second = shop.call_twice("orders", "update_status", order_id=order["id"], status="cancelled")

    assert first == second
    assert [step["status"] for step in first["history"]] == ["pending", "cancelled"]
    wait_for(lambda: stock(shop, product) == 10)


# Lists


def test_customers_list_their_own_orders_newest_first_in_pages(shop, product, customer):
    made = [place_order(shop.rpc, a_line(product), customer=customer)["id"] for _ in range(3)]
    place_order(shop.rpc, a_line(product))

    pages = [shop.rpc.orders.list_orders(user_id=customer["user_id"], limit=2, skip=skip) for skip in (0, 2, 4)]

    assert [[order["id"] for order in page["orders"]] for page in pages] == [made[:0:-1], made[:1], []]
    assert [page["total"] for page in pages] == [3, 3, 3]
    assert pages[0]["orders"][0] == shop.rpc.orders.get_order(order_id=made[-1])


def test_orders_are_found_by_status(shop, product, customer):
    pending, shipped = (place_order(shop.rpc, a_line(product), customer=customer) for _ in range(2))
    for status in ("confirmed", "shipped"):
        shop.rpc.orders.update_status(order_id=shipped["id"], status=status)

    found = {
        status: [
            order["id"] for order in shop.rpc.orders.list_orders(user_id=customer["user_id"], status=status)["orders"]
        ]
        for status in ("pending", "shipped", "cancelled")
    }

    assert found == {"pending": [pending["id"]], "shipped": [shipped["id"]], "cancelled": []}


@pytest.mark.parametrize("user_email", ("a_b%c+x@forage.example", "under_score@forage.example"))
def test_orders_are_found_by_a_literal_part_of_the_address(shop, product, user_email):
    customer = {**a_customer(), "user_email": user_email}
    lookalike = {**a_customer(), "user_email": user_email.replace("_", "x").replace("%", "y")}
    order = place_order(shop.rpc, a_line(product), customer=customer)
    place_order(shop.rpc, a_line(product), customer=lookalike)

    found = shop.rpc.orders.list_orders(q=user_email.split("@")[0].upper())

    assert [one["id"] for one in found["orders"]] == [order["id"]]


def test_an_order_is_found_by_its_id(shop, product):
    order = place_order(shop.rpc, a_line(product), customer={**a_customer(), "user_email": "digitless@forage.example"})

    found = shop.rpc.orders.list_orders(q=str(order["id"]))

    assert order["id"] in [one["id"] for one in found["orders"]]


@pytest.mark.parametrize("q", ("9" * 18, "9" * 19, "9" * 254, "²", "٣", "1.5", "%", "_", "\\", "'; --", "🍄"))
def test_a_search_without_a_match_is_empty(shop, product, customer, q):
    place_order(shop.rpc, a_line(product), customer=customer)

    assert shop.rpc.orders.list_orders(user_id=customer["user_id"], q=q) == {"orders": [], "total": 0}


def test_orders_are_found_by_the_time_of_their_creation(shop, product, customer):
    first, second = (place_order(shop.rpc, a_line(product), customer=customer) for _ in range(2))

    def found(**times):
        return [order["id"] for order in shop.rpc.orders.list_orders(user_id=customer["user_id"], **times)["orders"]]

    assert found(created_from=second["created_at"]) == [second["id"]]
    assert found(created_to=second["created_at"]) == [first["id"]]
    assert found(created_from="0001-01-01T00:00:00+14:00", created_to="9999-12-31T23:59:59-14:00") == [
        second["id"],
        first["id"],
    ]


@pytest.mark.parametrize("query", ({"limit": 0}, {"limit": 101}, {"skip": -1}, {"status": "lost"}, {"colour": "red"}))
def test_a_query_out_of_bounds_is_refused(shop, query):
    with pytest.raises(InvalidInput) as refusal:
        shop.rpc.orders.list_orders(**query)

    assert set(refusal.value.errors) == set(query)


def test_a_page_beyond_the_last_order_is_empty(shop):
    assert shop.rpc.orders.list_orders(skip=2**63 - 1)["orders"] == []


def test_times_are_read_in_utc_in_a_session_of_another_time_zone(own_shop, monkeypatch):
    # As behind a pooler that ignores the options of a connection.
    monkeypatch.setitem(pool.CONNECTION_SETTINGS, "options", "-c timezone=Asia/Kolkata")
    own_shop.run(Orders)
    own_shop.run(Products)
    product = own_shop.rpc.products.create_product(**a_product())

    order = place_order(own_shop.rpc, a_line(product))

    assert own_shop.rpc.orders.get_order(order_id=order["id"]) == order
    assert own_shop.rpc.orders.list_orders()["orders"] == [order]
    assert own_shop.rpc.products.get_product(product_id=product["id"])["created_at"] == product["created_at"]


# Summary


def insert_order(shop, status, total_amount, created_at):
    shop.sql(
        "orders",
        """
        WITH attempt AS (
            INSERT INTO attempts (reservation_id, state) VALUES (gen_random_uuid(), 'ordered') RETURNING reservation_id
        )
        INSERT INTO orders (reservation_id, user_id, user_email, status, total_amount, created_at)
        SELECT reservation_id, 1, 'ada@forage.example', %s, %s, %s FROM attempt
        """,
        status,
        total_amount,
        created_at,
    )


def test_the_time_of_a_whole_second_has_its_microseconds(shop):
    moment = "2020-02-29T12:00:00.000000Z"
    insert_order(shop, "delivered", "0.10", moment)

    [order] = shop.rpc.orders.list_orders(created_to="2020-03-01T00:00:00Z")["orders"]

    assert (order["created_at"], order["total_amount"], order["items"]) == (moment, "0.10", [])


def test_the_summary_counts_orders_by_utc_days(own_shop):
    own_shop.run(Orders)
    wait_for_a_day_with_time_left()
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    tomorrow, yesterday = today + timedelta(days=1), today - timedelta(days=1)
    for status, total_amount, created_at in (
        ("pending", "0.10", today),
        ("delivered", "9999999999.99", tomorrow - timedelta(microseconds=1)),
        ("cancelled", "7.00", today),
        ("shipped", "0.20", today - timedelta(microseconds=1)),
        ("shipped", "5.00", yesterday - timedelta(days=1, microseconds=1)),
        ("pending", "3.00", tomorrow),
    ):
        insert_order(own_shop, status, total_amount, created_at)

    sums = own_shop.rpc.orders.summarize_orders(days=3)

    assert sums == {
        "today": {"orders": 2, "revenue": "10000000000.09"},
        "by_status": {"pending": 2, "confirmed": 0, "shipped": 2, "delivered": 1, "cancelled": 1},
        "daily": [
            {"date": f"{yesterday - timedelta(days=1):%Y-%m-%d}", "orders": 0, "revenue": "0.00"},
            {"date": f"{yesterday:%Y-%m-%d}", "orders": 1, "revenue": "0.20"},
            {"date": f"{today:%Y-%m-%d}", "orders": 2, "revenue": "10000000000.09"},
        ],
    }


@pytest.mark.parametrize("days", (0, 91, "many", None))
def test_a_summary_of_an_invalid_number_of_days_is_refused(orders, days):
    with pytest.raises(InvalidInput) as refusal:
        orders.summarize_orders(days=days)

    assert set(refusal.value.errors) == {"days"}


def test_health_answers_up(orders):
    assert orders.health() == {"status": "up"}
