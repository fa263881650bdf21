"""Attempts of orders: keys, leases, and unfinished attempts."""

import time
from uuid import UUID, uuid4

import pytest

from contracts.orders import KeyReused, ProductsTimeout, ProductsUnavailable, RequestInFlight
from contracts.products import InsufficientStock
from contracts.types import InvalidInput
from nameko_reliable.errors import RpcTimeout
from nameko_reliable.testing.waiting import wait_for
from services.orders import Orders
from services.products import Products
from tests.factories import a_customer, a_line, a_product, place_order
from tests.shop import refusal_of


@pytest.fixture
def product(shop):
    return shop.rpc.products.create_product(**a_product(stock_quantity=10))


@pytest.fixture
def customer():
    return a_customer()


def stock(shop, product):
    return shop.rpc.products.get_product(product_id=product["id"])["stock_quantity"]


def attempts(shop, customer):
    """(state, reservation id) of each attempt, oldest first."""
    return shop.sql(
        "orders",
        "SELECT state, reservation_id FROM attempts WHERE user_id = %s ORDER BY created_at",
        customer["user_id"],
    )


def orders_of(shop, customer):
    return shop.rpc.orders.list_orders(user_id=customer["user_id"])["total"]


def end_lease(shop, customer):
    shop.sql("orders", "UPDATE attempts SET leased_until = now() WHERE user_id = %s", customer["user_id"])


def start_placing(rpc, customer, *lines, key="key"):
    return rpc.orders.create_order.call_async(**customer, items=list(lines), idempotency_key=key)


def locked(product):
    """A lock that keeps products from reserving."""
    return f"SELECT FROM products WHERE id = {product['id']} FOR UPDATE"


# Keys


def test_a_repeated_request_gets_the_first_answer_after_the_order_has_changed(shop, product, customer):
    order = place_order(shop.rpc, a_line(product, 2), customer=customer, key="key")
    shop.rpc.orders.update_status(order_id=order["id"], status="confirmed")
    shop.rpc.products.update_product(product_id=product["id"], price="99")

    again = place_order(shop.rpc, a_line(product, 2), customer=customer, key="key")

    assert again == order
    assert orders_of(shop, customer) == 1
    assert stock(shop, product) == 8


def test_a_repeated_request_may_split_its_lines_and_format_its_price_differently(shop, product, customer):
    order = place_order(shop.rpc, a_line(product, 3, unit_price="14.5"), customer=customer, key="key")

    again = place_order(
        shop.rpc, a_line(product, 1), a_line(product, 2, unit_price="14.50"), customer=customer, key="key"
    )

    assert again == order


def test_a_key_with_another_body_is_refused(shop, product, customer):
    other = shop.rpc.products.create_product(**a_product())
    place_order(shop.rpc, a_line(product, 2), customer=customer, key="key")

    for lines in ([a_line(product, 3)], [a_line(product, 2, unit_price="14.50")], [a_line(product, 2), a_line(other)]):
        with pytest.raises(KeyReused):
            place_order(shop.rpc, *lines, customer=customer, key="key")

    assert orders_of(shop, customer) == 1
    assert stock(shop, product) == 8


def test_two_customers_may_use_the_same_key(shop, product):
    first, second = (place_order(shop.rpc, a_line(product), customer=a_customer(), key="key") for _ in range(2))

    assert first["id"] != second["id"]


def test_two_keys_make_two_orders(shop, product, customer):
    for key in ("one", "two", None, None):
        place_order(shop.rpc, a_line(product), customer=customer, key=key)

    assert orders_of(shop, customer) == 4


@pytest.mark.usefixtures("long_deadlines")
def test_twenty_concurrent_requests_with_one_key_make_one_order(shop, product, customer):
    calls = [start_placing(shop.rpc, customer, a_line(product, 2)) for _ in range(20)]

    refusals = [refusal_of(call) for call in calls]
    assert all(refusal is None or isinstance(refusal, RequestInFlight) for refusal in refusals)
    placed = [call.result() for call, refusal in zip(calls, refusals, strict=True) if refusal is None]
    assert placed and all(order == placed[0] for order in placed)
    assert all(1 <= refusal.retry_after_seconds <= 10 for refusal in refusals if refusal)
    assert orders_of(shop, customer) == 1
    assert stock(shop, product) == 8


def test_a_refusal_frees_the_key_and_the_next_request_makes_a_new_reservation(shop, product, customer):
    with pytest.raises(InsufficientStock):
        place_order(shop.rpc, a_line(product, 11), customer=customer, key="key")
    shop.rpc.products.set_stock(product_id=product["id"], delta=1)

    place_order(shop.rpc, a_line(product, 11), customer=customer, key="key")

    (first, refused_id), (second, ordered_id) = attempts(shop, customer)
    assert (first, second) == ("abandoned", "ordered")
    assert refused_id != ordered_id


def test_after_a_refusal_the_key_may_be_used_with_another_body(shop, product, customer):
    with pytest.raises(InsufficientStock):
        place_order(shop.rpc, a_line(product, 11), customer=customer, key="key")

    assert place_order(shop.rpc, a_line(product, 10), customer=customer, key="key")


def test_an_order_that_waits_for_a_lock_past_its_deadline_leaves_no_attempt(shop, product, customer):
    lock = f"SELECT pg_advisory_xact_lock(hashtext('open orders of {customer['user_id']}'))"
    with shop.client(time_left=2) as hurried_client:
        with shop.transaction("orders", lock):
            call = start_placing(hurried_client, customer, a_line(product))
            shop.wait_until_locked("orders")
            over_at = time.monotonic() + 2
            wait_for(lambda: time.monotonic() > over_at)

        with pytest.raises(RpcTimeout):
            call.result()

    # A later call of the same customer gets the lock after it.
    place_order(shop.rpc, a_line(product), customer=customer, key="later")
    assert [state for state, _ in attempts(shop, customer)] == ["ordered"]


def test_a_redelivered_call_without_a_key_makes_one_order(shop, product, customer):
    first, second = shop.call_twice("orders", "create_order", **customer, items=[a_line(product, 2)])

    assert first == second
    assert orders_of(shop, customer) == 1
    assert stock(shop, product) == 8


# Leases


def test_a_repeat_during_the_first_call_is_refused_with_a_time_to_wait(shop, product, customer):
    with shop.client() as other_client:
        with shop.transaction("products", locked(product)):
            first = start_placing(other_client, customer, a_line(product))
            shop.wait_until_locked("products")

            with pytest.raises(RequestInFlight) as refusal:
                place_order(shop.rpc, a_line(product), customer=customer, key="key")
            with pytest.raises(KeyReused):
                place_order(shop.rpc, a_line(product, 2), customer=customer, key="key")

        order = first.result()

    assert 1 <= refusal.value.retry_after_seconds <= 10
    assert place_order(shop.rpc, a_line(product), customer=customer, key="key") == order
    assert orders_of(shop, customer) == 1


def test_after_the_lease_a_repeat_takes_over_the_attempt_and_both_calls_get_one_order(shop, product, customer):
    with shop.client() as other_client:
        with shop.transaction("products", locked(product)):
            first = start_placing(other_client, customer, a_line(product, 3))
            shop.wait_until_locked("products")
            end_lease(shop, customer)
            second = start_placing(shop.rpc, customer, a_line(product, 3))
            wait_for(
                lambda: shop.sql(
                    "orders", "SELECT 1 FROM attempts WHERE leased_until > now() AND user_id = %s", customer["user_id"]
                )
            )

        assert first.result() == second.result()

    assert [state for state, _ in attempts(shop, customer)] == ["ordered"]
    assert orders_of(shop, customer) == 1
    assert stock(shop, product) == 7


def test_a_repeat_after_a_dead_call_keeps_its_reservation(own_shop, customer):
    own_shop.run(Products)
    dying = own_shop.run(Orders)
    product = own_shop.rpc.products.create_product(**a_product())
    with own_shop.client() as lost_client:
        with own_shop.transaction("products", locked(product)):
            start_placing(lost_client, customer, a_line(product, 3))
            own_shop.wait_until_locked("products")
            dying.kill()
        wait_for(lambda: stock(own_shop, product) == 7)
        [(state, reservation_id)] = attempts(own_shop, customer)
        assert state == "open"
        own_shop.run(Orders)
        end_lease(own_shop, customer)

        place_order(own_shop.rpc, a_line(product, 3), customer=customer, key="key")

    assert attempts(own_shop, customer) == [("ordered", reservation_id)]
    assert stock(own_shop, product) == 7


# Products unreachable or slow


def test_while_products_is_down_nothing_is_ordered_and_the_key_stays_free(own_shop, customer):
    own_shop.run(Orders)

    with pytest.raises(ProductsUnavailable):
        place_order(own_shop.rpc, {"product_id": 1, "quantity": 1}, customer=customer, key="key")

    assert [state for state, _ in attempts(own_shop, customer)] == ["abandoned"]
    own_shop.run(Products)
    product = own_shop.rpc.products.create_product(**a_product())
    assert product["id"] == 1
    order = place_order(own_shop.rpc, a_line(product), customer=customer, key="key")
    assert order["items"][0]["quantity"] == 1


def test_when_products_is_slow_nothing_stays_reserved_and_the_key_is_free(shop, product, customer):
    with shop.client(time_left=2) as hurried_client:
        with shop.transaction("products", locked(product)):
            with pytest.raises(ProductsTimeout):
                start_placing(hurried_client, customer, a_line(product, 3)).result()

    wait_for(lambda: released(shop, customer))
    assert stock(shop, product) == 10
    assert [state for state, _ in attempts(shop, customer)] == ["abandoned"]
    assert place_order(shop.rpc, a_line(product, 3), customer=customer, key="key")
    assert stock(shop, product) == 7


def released(shop, customer):
    """Whether products has released the reservation of the customer's first attempt."""
    reservation_id = attempts(shop, customer)[0][1]
    return shop.sql("products", "SELECT 1 FROM reservations WHERE id = %s AND state = 'released'", reservation_id)


def test_an_order_that_cannot_be_written_releases_its_stock(shop, product, customer):
    with shop.client(time_left=2) as hurried_client:
        with shop.transaction("orders", "LOCK TABLE orders IN EXCLUSIVE MODE"):
            call = start_placing(hurried_client, customer, a_line(product, 3))
            over_at = time.monotonic() + 2.5
            wait_for(lambda: stock(shop, product) == 7)
            wait_for(lambda: time.monotonic() > over_at)

        with pytest.raises(RpcTimeout):
            call.result()

    wait_for(lambda: stock(shop, product) == 10)
    assert orders_of(shop, customer) == 0


def test_an_order_whose_answer_was_lost_is_looked_up(own_shop, customer, database_proxy):
    proxy = database_proxy("orders")
    own_shop.run(Products)
    # Prepared, it would wait for the lock before it is sent.
    own_shop.run(Orders, DB_URIS={"orders": proxy.uri}, PREPARED_STATEMENTS="0")
    product = own_shop.rpc.products.create_product(**a_product(stock_quantity=10))
    with own_shop.transaction("orders", "LOCK TABLE orders IN EXCLUSIVE MODE"):
        call = start_placing(own_shop.rpc, customer, a_line(product, 3))
        own_shop.wait_until_locked("orders")
        proxy.hold()
    [(order_id,)] = wait_for(lambda: own_shop.sql("orders", "SELECT id FROM orders"))

    proxy.cut()
    proxy.release()

    assert call.result()["id"] == order_id
    assert [state for state, _ in attempts(own_shop, customer)] == ["ordered"]
    assert stock(own_shop, product) == 7


# The fence


def test_a_question_about_an_unknown_reservation_abandons_it(shop):
    reservation_id = str(uuid4())

    answers = [shop.rpc.orders.find_reservation(reservation_id=reservation_id) for _ in range(2)]

    assert answers == ["abandoned", "abandoned"]
    assert shop.sql("orders", "SELECT state FROM attempts WHERE reservation_id = %s", UUID(reservation_id)) == [
        ("abandoned",)
    ]


def test_a_reservation_with_an_order_is_ordered(shop, product, customer):
    place_order(shop.rpc, a_line(product), customer=customer)
    [(_, reservation_id)] = attempts(shop, customer)
    end_lease(shop, customer)

    assert shop.rpc.orders.find_reservation(reservation_id=str(reservation_id)) == "ordered"


def test_a_reservation_within_its_lease_is_open(shop, product, customer):
    with shop.client() as other_client:
        with shop.transaction("products", locked(product)):
            call = start_placing(other_client, customer, a_line(product))
            shop.wait_until_locked("products")
            [(_, reservation_id)] = attempts(shop, customer)

            answer = shop.rpc.orders.find_reservation(reservation_id=str(reservation_id))

        assert answer == "open"
        assert call.result()["status"] == "pending"


def test_an_order_fails_after_its_attempt_was_abandoned(shop, product, customer):
    with shop.client() as other_client:
        with shop.transaction("products", locked(product)):
            late = start_placing(other_client, customer, a_line(product, 3))
            shop.wait_until_locked("products")
            end_lease(shop, customer)
            [(_, reservation_id)] = attempts(shop, customer)

            answer = shop.rpc.orders.find_reservation(reservation_id=str(reservation_id))

        assert answer == "abandoned"
        assert isinstance(refusal_of(late), ProductsTimeout)

    wait_for(lambda: stock(shop, product) == 10 and released(shop, customer))
    assert orders_of(shop, customer) == 0


def test_one_call_answers_for_many_reservations(shop, product, customer):
    made = (
        "INSERT INTO attempts (reservation_id, user_id, key, state, leased_until)"
        " VALUES (%s, %s, %s, 'open', now() + interval %s)"
    )
    unknown, expired, current = (uuid4() for _ in range(3))
    place_order(shop.rpc, a_line(product), customer=customer)
    [(_, ordered)] = attempts(shop, customer)
    shop.sql("orders", made, expired, customer["user_id"], "expired", "-1 minute")
    shop.sql("orders", made, current, customer["user_id"], "current", "1 minute")
    asked = [str(one) for one in (expired, unknown, ordered, current)]

    answers = [shop.rpc.orders.find_reservations(reservation_ids=ids) for ids in (asked, asked[::-1])]

    expected = {expired: "abandoned", unknown: "abandoned", ordered: "ordered", current: "open"}
    assert answers == [{str(one): state for one, state in expected.items()}] * 2
    # Only an attempt that was open may have a reservation.
    wait_for(lambda: shop.sql("products", "SELECT 1 FROM reservations WHERE id = %s AND state = 'released'", expired))
    assert shop.sql("products", "SELECT 1 FROM reservations WHERE id = %s", unknown) == []


def test_concurrent_questions_about_the_same_reservations_do_not_deadlock(shop):
    ids = [str(uuid4()) for _ in range(50)]

    calls = [shop.rpc.orders.find_reservations.call_async(reservation_ids=asked) for asked in (ids, ids[::-1]) * 5]

    assert [set(call.result().values()) for call in calls] == [{"abandoned"}] * 10


@pytest.mark.parametrize("reservation_id", ("c0ffee", "", None, 5))
def test_an_invalid_reservation_id_is_refused(shop, reservation_id):
    with pytest.raises(InvalidInput):
        shop.rpc.orders.find_reservation(reservation_id=reservation_id)
    with pytest.raises(InvalidInput):
        shop.rpc.orders.find_reservations(reservation_ids=[str(uuid4()), reservation_id])


@pytest.mark.parametrize("number", (0, 501))
def test_a_question_about_no_or_too_many_reservations_is_refused(shop, number):
    with pytest.raises(InvalidInput):
        shop.rpc.orders.find_reservations(reservation_ids=[str(uuid4()) for _ in range(number)])


# Housekeeping


def test_a_dead_attempt_without_a_reservation_is_abandoned_after_two_minutes(shop, customer):
    made = (
        "INSERT INTO attempts (reservation_id, user_id, key, state, leased_until)"
        " VALUES (%s, %s, %s, 'open', now() - interval %s)"
    )
    old, young = uuid4(), uuid4()
    shop.sql("orders", made, old, customer["user_id"], "old", "121 seconds")
    shop.sql("orders", made, young, customer["user_id"], "young", "60 seconds")

    shop.fire(shop.containers["orders"], "end_dead_attempts_and_unconfirmed_orders")

    assert dict((reservation_id, state) for state, reservation_id in attempts(shop, customer)) == {
        old: "abandoned",
        young: "open",
    }
    wait_for(lambda: shop.sql("products", "SELECT 1 FROM reservations WHERE id = %s AND state = 'released'", old))


def test_abandoned_attempts_are_deleted_after_thirty_days_and_ordered_ones_are_kept(shop, product, customer):
    place_order(shop.rpc, a_line(product), customer=customer, key="ordered")
    for key in ("old", "young"):
        refusal_of(start_placing(shop.rpc, customer, a_line(product, 11), key=key))
    shop.sql(
        "orders",
        "UPDATE attempts SET created_at = now() - interval '31 days' WHERE user_id = %s AND key <> 'young'",
        customer["user_id"],
    )

    shop.fire(shop.containers["orders"], "forget_answers_and_dead_attempts")

    assert sorted(state for state, _ in attempts(shop, customer)) == ["abandoned", "ordered"]
