"""The limits of open orders for each account, and orders that are never confirmed."""

import pytest

from contracts.orders import KeyReused, OrderStatusUpdated, TooManyOpenOrders
from contracts.products import InsufficientStock
from nameko_reliable.testing.waiting import wait_for
from services.orders import Orders
from services.products import Products
from tests.factories import a_customer, a_line, a_product, place_order
from tests.shop import refusal_of, running_shop


@pytest.fixture(scope="module")
def shop(brokers, databases, smtp_server):
    """Two replicas of orders. The limits are 5 open orders with 12 units, and 8 with 40 with a proven address."""
    limits = {
        "RATE_LIMIT_SCALE": "1",
        "MAX_OPEN_ORDERS": "8",
        "MAX_OPEN_UNITS": "40",
        "MAX_OPEN_ORDERS_UNPROVEN": "5",
        "MAX_OPEN_UNITS_UNPROVEN": "12",
        "PENDING_ORDER_HOURS": "48",
    }
    with running_shop(brokers, databases, smtp_server, Orders, Products, **limits) as shop:
        shop.run(Orders, **limits)
        yield shop


@pytest.fixture
def product(shop):
    return shop.rpc.products.create_product(**a_product(stock_quantity=100))


@pytest.fixture
def customer():
    return a_customer()


def stock(shop, product):
    return shop.rpc.products.get_product(product_id=product["id"])["stock_quantity"]


def placed(shop, number, *lines, **fields):
    """The results of `number` concurrent calls: each an order or a refusal."""
    calls = [shop.rpc.orders.create_order.call_async(items=list(lines), **fields) for _ in range(number)]
    return [refusal_of(call) or call.result() for call in calls]


def refusals(results):
    return [result for result in results if isinstance(result, TooManyOpenOrders)]


@pytest.mark.usefixtures("long_deadlines")
@pytest.mark.parametrize("email_verified, most_orders, most_units", ((False, 5, 12), (True, 8, 40)))
def test_concurrent_orders_do_not_exceed_the_limit_of_open_orders(
    shop, product, customer, email_verified, most_orders, most_units
):
    results = placed(shop, 20, a_line(product), **customer, email_verified=email_verified)

    refused = refusals(results)
    assert len(refused) == 20 - most_orders
    assert {(refusal.most_orders, refusal.most_units) for refusal in refused} == {(most_orders, most_units)}
    assert shop.rpc.orders.list_orders(user_id=customer["user_id"])["total"] == most_orders
    assert stock(shop, product) == 100 - most_orders


@pytest.mark.usefixtures("long_deadlines")
def test_concurrent_orders_do_not_exceed_the_limit_of_open_units(shop, product, customer):
    results = placed(shop, 10, a_line(product, 5), **customer)

    assert len(refusals(results)) == 8
    assert stock(shop, product) == 90


def test_orders_that_begin_at_the_same_time_count_each_other(shop, product, customer):
    lock = f"SELECT pg_advisory_xact_lock(hashtext('open orders of {customer['user_id']}'))"
    with shop.transaction("orders", lock):
        calls = [shop.rpc.orders.create_order.call_async(**customer, items=[a_line(product, 5)]) for _ in range(6)]
        shop.wait_until_locked("orders", waiters=6)

    assert len(refusals([refusal_of(call) for call in calls])) == 4
    assert stock(shop, product) == 90


def test_an_order_beyond_the_limit_of_open_units_is_refused_with_the_figures(shop, product, customer):
    other = shop.rpc.products.create_product(**a_product())
    place_order(shop.rpc, a_line(product, 3), customer=customer)

    with pytest.raises(TooManyOpenOrders) as refusal:
        place_order(shop.rpc, a_line(product, 6), a_line(other, 4), customer=customer)

    assert vars(refusal.value) == {
        "open_orders": 1,
        "open_units": 3,
        "requested_units": 10,
        "most_orders": 5,
        "most_units": 12,
    }
    assert (stock(shop, product), stock(shop, other)) == (97, 10)


def test_a_repeated_request_gets_its_answer_at_the_limits(shop, product, customer):
    first = place_order(shop.rpc, a_line(product), customer=customer, key="key")
    placed(shop, 4, a_line(product), **customer)

    assert place_order(shop.rpc, a_line(product), customer=customer, key="key") == first
    with pytest.raises(KeyReused):
        place_order(shop.rpc, a_line(product, 2), customer=customer, key="key")
    with pytest.raises(TooManyOpenOrders):
        place_order(shop.rpc, a_line(product), customer=customer, key="another")


def test_an_order_is_open_until_it_is_shipped_or_cancelled(shop, product, customer):
    orders = placed(shop, 5, a_line(product), **customer)
    for order in orders:
        shop.rpc.orders.update_status(order_id=order["id"], status="confirmed")
    assert refusals(placed(shop, 1, a_line(product), **customer))

    shop.rpc.orders.update_status(order_id=orders[0]["id"], status="shipped")
    shop.rpc.orders.update_status(order_id=orders[1]["id"], status="cancelled")

    assert len(refusals(placed(shop, 3, a_line(product), **customer))) == 1


def test_an_open_attempt_counts_and_a_refused_one_does_not(shop, product, customer):
    locked = f"SELECT FROM products WHERE id = {product['id']} FOR UPDATE"
    with shop.transaction("products", locked):
        held = shop.rpc.orders.create_order.call_async(**customer, items=[a_line(product, 10)])
        shop.wait_until_locked("products")

        assert refusals(placed(shop, 1, a_line(product, 3), **customer))
    held.result()
    scarce = shop.rpc.products.create_product(**a_product(stock_quantity=1))
    with pytest.raises(InsufficientStock):
        place_order(shop.rpc, a_line(scarce, 2), customer=customer)

    place_order(shop.rpc, a_line(product, 2), customer=customer)


def test_an_attempt_whose_call_died_no_longer_counts(shop, product, customer):
    shop.sql(
        "orders",
        "INSERT INTO attempts (reservation_id, user_id, key, units, state, leased_until)"
        " VALUES (gen_random_uuid(), %s, 'key', 10, 'open', now())",
        customer["user_id"],
    )
    assert refusals(placed(shop, 1, a_line(product, 3), **customer))

    shop.sql(
        "orders",
        "UPDATE attempts SET leased_until = now() - interval '3 minutes' WHERE user_id = %s",
        customer["user_id"],
    )
    shop.fire(shop.containers["orders"], "end_dead_attempts_and_unconfirmed_orders")

    place_order(shop.rpc, a_line(product, 3), customer=customer)


def test_orders_of_the_previous_release_count_by_their_lines(shop, product, customer):
    place_order(shop.rpc, a_line(product, 10), customer=customer)
    shop.sql("orders", "UPDATE attempts SET units = NULL WHERE user_id = %s", customer["user_id"])

    assert refusals(placed(shop, 1, a_line(product, 3), **customer))


def test_each_account_has_its_own_limits(shop, product, customer):
    placed(shop, 5, a_line(product), **customer)

    assert place_order(shop.rpc, a_line(product), customer=a_customer())


@pytest.mark.parametrize("scale, most", (("0.1", (2, 20)), ("0.001", (1, 1)), ("3", (60, 600))))
def test_rate_limit_scale_multiplies_the_limits(own_shop, scale, most):
    own_shop.run(Orders, RATE_LIMIT_SCALE=scale)

    with pytest.raises(TooManyOpenOrders) as refusal:
        place_order(own_shop.rpc, {"product_id": 1, "quantity": 1000})

    assert (refusal.value.most_orders, refusal.value.most_units) == most


# Orders that are never confirmed


def let_pass(shop, hours, *orders):
    ids = [order["id"] for order in orders]
    older = "UPDATE orders SET created_at = created_at - make_interval(hours => %s) WHERE id = ANY(%s)"
    shop.sql("orders", older, hours, ids)


def cancel_unconfirmed(shop):
    shop.fire(shop.containers["orders"], "end_dead_attempts_and_unconfirmed_orders")


def steps(shop, order):
    history = shop.rpc.orders.get_order(order_id=order["id"])["history"]
    return [(step["status"], step["by"]) for step in history]


def test_the_shop_cancels_an_order_that_stays_pending(shop, product, events_of):
    late, early, confirmed = (place_order(shop.rpc, a_line(product, 2)) for _ in range(3))
    shop.rpc.orders.update_status(order_id=confirmed["id"], status="confirmed")
    let_pass(shop, 49, late, confirmed)
    let_pass(shop, 47, early)

    cancel_unconfirmed(shop)

    assert steps(shop, late) == [("pending", "customer"), ("cancelled", "system")]
    assert [steps(shop, order)[-1][0] for order in (early, confirmed)] == ["pending", "confirmed"]
    event = events_of(late)[-1]
    assert (type(event), event.sequence, event.old_status) == (OrderStatusUpdated, 2, "pending")
    assert (event.new_status, event.reason) == ("cancelled", "not-confirmed")


def test_a_cancel_by_the_shop_releases_the_stock(shop, product):
    order = place_order(shop.rpc, a_line(product, 2))
    let_pass(shop, 49, order)

    cancel_unconfirmed(shop)

    wait_for(lambda: stock(shop, product) == 100)


def test_orders_that_are_confirmed_meanwhile_stay_confirmed(shop, product):
    orders = [place_order(shop.rpc, a_line(product)) for _ in range(12)]
    let_pass(shop, 49, *orders)

    calls = [shop.rpc.orders.update_status.call_async(order_id=order["id"], status="confirmed") for order in orders]
    cancel_unconfirmed(shop)

    confirmed = [refusal_of(call) is None for call in calls]
    assert [steps(shop, order)[-1] for order in orders] == [
        ("confirmed", "admin") if is_confirmed else ("cancelled", "system") for is_confirmed in confirmed
    ]


def test_a_locked_order_is_skipped(shop, product):
    held, free = (place_order(shop.rpc, a_line(product)) for _ in range(2))
    let_pass(shop, 49, held, free)

    with shop.transaction("orders", f"SELECT FROM orders WHERE id = {held['id']} FOR UPDATE"):
        cancel_unconfirmed(shop)
        assert steps(shop, free)[-1][0] == "cancelled"
        assert steps(shop, held)[-1][0] == "pending"
    cancel_unconfirmed(shop)

    assert steps(shop, held)[-1][0] == "cancelled"


def test_many_old_orders_are_cancelled_in_batches(shop):
    customer = a_customer()
    shop.sql(
        "orders",
        """
        WITH made AS (
            INSERT INTO attempts (reservation_id, user_id, key, state)
            SELECT gen_random_uuid(), %s, n, 'ordered' FROM generate_series(1, 110) n RETURNING reservation_id
        )
        INSERT INTO orders (reservation_id, user_id, user_email, status, total_amount, created_at)
        SELECT reservation_id, %s, %s, 'pending', 0, now() - interval '3 days' FROM made
        """,
        customer["user_id"],
        customer["user_id"],
        customer["user_email"],
    )

    cancel_unconfirmed(shop)

    assert shop.rpc.orders.list_orders(user_id=customer["user_id"], status="cancelled", limit=1)["total"] == 110


def test_without_the_setting_no_order_is_cancelled(own_shop):
    orders = own_shop.run(Orders)
    own_shop.run(Products)
    product = own_shop.rpc.products.create_product(**a_product())
    order = place_order(own_shop.rpc, a_line(product))
    let_pass(own_shop, 24 * 365, order)

    own_shop.fire(orders, "end_dead_attempts_and_unconfirmed_orders")

    assert steps(own_shop, order) == [("pending", "customer")]
