import time
from functools import partial
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from contracts.orders import OrderAbandoned
from contracts.products import InsufficientStock, PriceChanged, ProductNotFound, ReservationReleased
from contracts.types import InvalidInput
from nameko_reliable.errors import RpcTimeout, ServiceUnavailable
from nameko_reliable.messages import to_payload
from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.waiting import wait_for
from services import products as products_service
from services.orders import Orders
from services.products import Products
from tests.factories import a_line, a_product, order_created, order_status_updated, place_order
from tests.shop import refusal_of


@pytest.fixture
def products(shop):
    return shop.rpc.products


@pytest.fixture
def reservation_id():
    return str(uuid4())


def stock(shop, product):
    """The product's stock, which must be the sum of its ledger."""
    [(quantity, ledger)] = shop.sql(
        "products",
        "SELECT stock_quantity, (SELECT sum(delta) FROM stock_movements WHERE product_id = p.id)"
        " FROM products p WHERE id = %s",
        product["id"],
    )
    assert quantity == ledger
    return quantity


def state(shop, reservation_id):
    rows = shop.sql("products", "SELECT state FROM reservations WHERE id = %s", reservation_id)
    return rows[0][0] if rows else None


def handled(shop, event):
    return shop.sql("products", "SELECT 1 FROM inbox WHERE event_id = %s", event.event_id)


def publish(shop, *events):
    """Publish events one by one, each after the one before it was handled."""
    for event in events:
        shop.publish(event)
        wait_for(lambda event=event: handled(shop, event))


def make_older(shop, *reservation_ids):
    shop.sql(
        "products",
        "UPDATE reservations SET created_at = now() - interval '11 minutes' WHERE id = ANY (%s::uuid[])",
        [str(one) for one in reservation_ids],
    )


def settle(shop, *reservation_ids):
    """Let the settling find these reservations, and no younger ones."""
    make_older(shop, *reservation_ids)
    shop.fire(shop.containers["products"], "settle_open_reservations")


def have_ordered(shop, reservation_id):
    """As if orders had made an order of the reservation."""
    shop.sql(
        "orders",
        "INSERT INTO attempts (reservation_id, state) VALUES (%s, 'ordered') ON CONFLICT DO NOTHING",
        reservation_id,
    )


def reservation_of(shop, product):
    """The id of the product's only reservation."""
    [(reservation_id,)] = shop.sql(
        "products", "SELECT reservation_id FROM reservation_lines WHERE product_id = %s", product["id"]
    )
    return reservation_id


def have_begun(shop, reservation_id):
    """As if orders were placing the order of the reservation."""
    shop.sql(
        "orders",
        "INSERT INTO attempts (reservation_id, user_id, key, state, leased_until)"
        " VALUES (%s, 1, %s, 'open', now() + interval '1 minute')",
        reservation_id,
        str(reservation_id),
    )


def commit(shop, reservation_id):
    have_ordered(shop, reservation_id)
    settle(shop, reservation_id)


# Reserving


def test_a_reservation_takes_the_stock_and_keeps_name_and_price(shop, products, reservation_id):
    product = products.create_product(**a_product(name="Morels", price="14.50", stock_quantity=10))

    answer = products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3)])

    line = {"product_id": product["id"], "product_name": "Morels", "product_price": "14.50", "quantity": 3}
    assert answer == {"reservation_id": reservation_id, "lines": [line]}
    assert stock(shop, product) == 7
    assert state(shop, reservation_id) == "open"


def test_a_repeated_reservation_takes_no_more_stock_and_gets_the_same_answer(shop, products, reservation_id):
    product = products.create_product(**a_product(stock_quantity=10))
    lines = [a_line(product, 3, unit_price=product["price"])]
    first = products.reserve_stock(reservation_id=reservation_id, lines=lines)
    products.update_product(product_id=product["id"], price="99", name="Renamed", stock_quantity=0)

    again = products.reserve_stock(reservation_id=reservation_id.upper(), lines=lines)

    assert again == first
    assert stock(shop, product) == 0


@pytest.mark.parametrize("stock_quantity", (3, 10), ids=("the first one takes all units", "enough for several"))
def test_concurrent_calls_for_one_reservation_make_it_once(shop, products, reservation_id, stock_quantity):
    product = products.create_product(**a_product(stock_quantity=stock_quantity))

    with shop.transaction("products", f"SELECT FROM products WHERE id = {product['id']} FOR UPDATE"):
        calls = [
            products.reserve_stock.call_async(reservation_id=reservation_id, lines=[a_line(product, 3)])
            for _ in range(3)
        ]
        shop.wait_until_locked("products", waiters=3)

    answers = [call.result() for call in calls]
    assert all(answer == answers[0] for answer in answers)
    assert stock(shop, product) == stock_quantity - 3


def test_a_reservation_that_gets_its_locks_past_its_deadline_takes_nothing(shop, products, reservation_id):
    product = products.create_product(**a_product(stock_quantity=10))
    with shop.client(time_left=2) as hurried_client:
        with shop.transaction("products", f"SELECT FROM products WHERE id = {product['id']} FOR UPDATE"):
            call = hurried_client.products.reserve_stock.call_async(
                reservation_id=reservation_id, lines=[a_line(product, 3)]
            )
            shop.wait_until_locked("products")
            over_at = time.monotonic() + 2
            wait_for(lambda: time.monotonic() > over_at)

        assert isinstance(refusal_of(call), RpcTimeout)

    assert (stock(shop, product), state(shop, reservation_id)) == (10, None)


def test_a_redelivered_reservation_is_made_once(shop, products, reservation_id):
    product = products.create_product(**a_product(stock_quantity=10))

    first, second = shop.call_twice(
        "products", "reserve_stock", reservation_id=reservation_id, lines=[a_line(product, 3)]
    )

    assert first == second
    assert stock(shop, product) == 7


def test_a_line_without_enough_stock_reserves_no_line(shop, products, reservation_id):
    plenty, short = (products.create_product(**a_product(stock_quantity=quantity)) for quantity in (10, 2))

    with pytest.raises(InsufficientStock) as refusal:
        products.reserve_stock(reservation_id=reservation_id, lines=[a_line(plenty, 3), a_line(short, 3)])

    assert (refusal.value.product_id, refusal.value.requested, refusal.value.available) == (short["id"], 3, 2)
    assert (stock(shop, plenty), stock(shop, short)) == (10, 2)
    assert state(shop, reservation_id) is None


def test_after_a_refusal_the_same_reservation_can_be_made(shop, products, reservation_id):
    product = products.create_product(**a_product(stock_quantity=2))
    refusal_of(products.reserve_stock.call_async(reservation_id=reservation_id, lines=[a_line(product, 3)]))
    products.set_stock(product_id=product["id"], delta=1)

    products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3)])

    assert stock(shop, product) == 0


def test_a_price_other_than_the_customer_saw_is_refused(shop, products, reservation_id):
    product = products.create_product(**a_product(price="14.50"))

    with pytest.raises(PriceChanged) as refusal:
        products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, unit_price="14.49")])

    assert (refusal.value.product_id, str(refusal.value.given), str(refusal.value.current)) == (
        product["id"],
        "14.49",
        "14.50",
    )
    assert stock(shop, product) == 10


def test_prices_are_compared_as_numbers(products, reservation_id):
    product = products.create_product(**a_product(price="14.50"))

    assert products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, unit_price="14.5")])


def test_an_unknown_and_an_inactive_product_are_not_found(shop, products, reservation_id):
    sold, gone = (products.create_product(**a_product()) for _ in range(2))
    products.delete_product(product_id=gone["id"])

    for lines, missing in (
        ([a_line(sold), a_line(gone)], gone["id"]),
        ([{"product_id": 2**62, "quantity": 1}, a_line(sold)], 2**62),
    ):
        refusal = refusal_of(products.reserve_stock.call_async(reservation_id=reservation_id, lines=lines))
        assert isinstance(refusal, ProductNotFound) and refusal.product_id == missing
    assert stock(shop, sold) == 10


@pytest.mark.parametrize(
    "call",
    (
        {"reservation_id": "c0ffee", "lines": [{"product_id": 1, "quantity": 1}]},
        {"reservation_id": str(uuid4()), "lines": []},
        {"reservation_id": str(uuid4()), "lines": [{"product_id": 1, "quantity": 0}]},
        {"reservation_id": str(uuid4()), "lines": [{"product_id": 1, "quantity": 1}] * 2},
    ),
)
def test_a_reservation_out_of_bounds_is_refused(products, call):
    with pytest.raises(InvalidInput):
        products.reserve_stock(**call)


def test_forty_concurrent_reservations_get_the_last_ten_units(shop, products):
    product = products.create_product(**a_product(stock_quantity=10))

    calls = [products.reserve_stock.call_async(reservation_id=str(uuid4()), lines=[a_line(product)]) for _ in range(40)]

    refusals = [refusal_of(call) for call in calls]
    assert refusals.count(None) == 10
    assert sum(isinstance(refusal, InsufficientStock) for refusal in refusals) == 30
    assert stock(shop, product) == 0


def test_a_reservation_that_waits_for_a_restock_gets_the_new_stock(shop, products, reservation_id):
    product = products.create_product(**a_product(stock_quantity=0))

    with shop.transaction("products") as restock:
        restock.execute("UPDATE products SET stock_quantity = 5 WHERE id = %s", [product["id"]])
        restock.execute(
            "INSERT INTO stock_movements (product_id, delta, reason) VALUES (%s, 5, 'edit')", [product["id"]]
        )
        call = products.reserve_stock.call_async(reservation_id=reservation_id, lines=[a_line(product, 2)])
        shop.wait_until_locked("products")

    assert refusal_of(call) is None
    assert stock(shop, product) == 3


def test_two_interleaved_reservations_with_crossed_carts_do_not_deadlock(shop, products):
    made = [products.create_product(**a_product(stock_quantity=10)) for _ in range(3)]
    forth = [a_line(product) for product in made]
    earlier = str(uuid4())
    products.reserve_stock(reservation_id=earlier, lines=forth)

    with shop.transaction("products", f"SELECT 1 FROM products WHERE id = {made[1]['id']} FOR UPDATE"):
        calls = [
            products.reserve_stock.call_async(reservation_id=str(uuid4()), lines=lines)
            for lines in (forth, forth[::-1])
        ]
        calls.append(products.release_stock.call_async(reservation_id=earlier))
        shop.wait_until_locked("products", waiters=3)

    assert [refusal_of(call) for call in calls] == [None] * 3
    assert [stock(shop, product) for product in made] == [8] * 3


def test_many_crossed_carts_and_releases_do_not_deadlock(shop, products):
    made = [products.create_product(**a_product(stock_quantity=1000)) for _ in range(6)]
    forth = [a_line(product) for product in made]
    ids = [str(uuid4()) for _ in range(60)]

    calls = []
    for number, one in enumerate(ids):
        lines = forth if number % 2 else forth[::-1]
        calls.append(products.reserve_stock.call_async(reservation_id=one, lines=lines))
        if number % 3 == 0:
            calls.append(products.release_stock.call_async(reservation_id=one))

    refusals = [refusal_of(call) for call in calls]
    assert all(refusal is None or isinstance(refusal, ReservationReleased) for refusal in refusals)
    reserved = shop.sql(
        "products", "SELECT count(*) FROM reservations WHERE state = 'open' AND id = ANY (%s::uuid[])", ids
    )
    assert [stock(shop, product) for product in made] == [1000 - reserved[0][0]] * 6


def test_a_check_of_the_stock_reserves_nothing(shop, products):
    product, short = (products.create_product(**a_product(stock_quantity=quantity)) for quantity in (10, 1))

    answer = products.check_stock(lines=[a_line(product, 2), a_line(short, 2)])

    assert answer == [
        {"product_id": product["id"], "requested": 2, "available": 10, "sufficient": True},
        {"product_id": short["id"], "requested": 2, "available": 1, "sufficient": False},
    ]
    assert stock(shop, product) == 10


def test_a_check_of_the_stock_of_an_unknown_product_is_refused(products):
    with pytest.raises(ProductNotFound):
        products.check_stock(lines=[{"product_id": 2**62, "quantity": 1}])


# Releasing


def test_a_release_returns_all_stock_once(shop, products, reservation_id):
    made = [products.create_product(**a_product(stock_quantity=10)) for _ in range(2)]
    products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3) for product in made])

    answers = [products.release_stock(reservation_id=reservation_id) for _ in range(2)]

    assert answers == [{"reservation_id": reservation_id, "state": "released"}] * 2
    assert [stock(shop, product) for product in made] == [10, 10]


def test_a_released_reservation_cannot_be_made_again(shop, products, reservation_id):
    product = products.create_product(**a_product(stock_quantity=10))
    products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3)])
    products.release_stock(reservation_id=reservation_id)

    with pytest.raises(ReservationReleased) as refusal:
        products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3)])

    assert refusal.value.reservation_id == reservation_id
    assert stock(shop, product) == 10


def test_the_release_of_an_unknown_reservation_prevents_it(shop, products, reservation_id):
    product = products.create_product(**a_product(stock_quantity=10))

    products.release_stock(reservation_id=reservation_id)

    with pytest.raises(ReservationReleased):
        products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3)])
    assert stock(shop, product) == 10


def test_release_stock_does_not_release_a_committed_reservation(shop, products, reservation_id):
    product = products.create_product(**a_product(stock_quantity=10))
    products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3)])
    commit(shop, reservation_id)

    answer = products.release_stock(reservation_id=reservation_id)

    assert answer["state"] == "committed"
    assert stock(shop, product) == 7


def test_release_stock_does_not_release_the_open_reservation_of_an_order(shop, products):
    product = products.create_product(**a_product())
    place_order(shop.rpc, a_line(product, 3))
    reservation_id = reservation_of(shop, product)

    answer = products.release_stock(reservation_id=str(reservation_id))

    assert answer["state"] == "open"
    assert stock(shop, product) == 7


def test_release_stock_leaves_an_order_that_is_being_placed(shop, products, reservation_id):
    product = products.create_product(**a_product())
    have_begun(shop, reservation_id)

    answer = products.release_stock(reservation_id=reservation_id)

    assert answer == {"reservation_id": reservation_id, "state": None}
    products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3)])
    assert stock(shop, product) == 7


# Events


def a_reservation(shop, product, quantity=3):
    reservation_id = uuid4()
    lines = [a_line(product, quantity)]
    shop.rpc.products.reserve_stock(reservation_id=str(reservation_id), lines=lines)
    return reservation_id


def test_an_order_created_event_of_0_1_0_is_taken_without_effect(shop, products):
    watched = Watched(shop.containers["products"])
    product = products.create_product(**a_product())
    created = order_created(reservation_id=a_reservation(shop, product))

    shop.broker.publish(to_payload(created), queue="evt-orders-order.created--products.commit_reservation")

    handled = {"handler": "commit_reservation", "outcome": "handled"}
    wait_for(lambda: watched.count("forage_event_handler_duration_seconds_count", **handled) == 1)
    assert (state(shop, created.reservation_id), stock(shop, product)) == ("open", 7)
    assert products.list_parked()["total"] == 0


def test_an_abandoned_order_releases_its_stock(shop, products):
    product = products.create_product(**a_product())
    reservation_id = a_reservation(shop, product)

    publish(shop, OrderAbandoned(reservation_id=reservation_id))

    assert state(shop, reservation_id) == "released"
    assert stock(shop, product) == 10


def test_an_order_that_was_abandoned_cannot_reserve_later(shop, products, reservation_id):
    product = products.create_product(**a_product())

    publish(shop, OrderAbandoned(reservation_id=reservation_id))

    with pytest.raises(ReservationReleased):
        products.reserve_stock(reservation_id=reservation_id, lines=[a_line(product)])
    assert stock(shop, product) == 10


def test_a_cancelled_order_releases_its_stock_once(shop, products):
    product = products.create_product(**a_product())
    created = order_created(reservation_id=a_reservation(shop, product))
    cancelled = order_status_updated(created, "cancelled")
    commit(shop, created.reservation_id)

    publish(shop, cancelled)
    publish(shop, cancelled, order_status_updated(created, "cancelled"))

    assert stock(shop, product) == 10
    assert state(shop, created.reservation_id) == "released"


def test_a_cancel_before_its_reservation_is_settled_releases_the_stock(shop, products):
    product = products.create_product(**a_product())
    created = order_created(reservation_id=a_reservation(shop, product))
    have_ordered(shop, created.reservation_id)

    publish(shop, order_status_updated(created, "cancelled"))
    settle(shop, created.reservation_id)

    assert stock(shop, product) == 10
    assert state(shop, created.reservation_id) == "released"


@pytest.mark.parametrize("status", ("confirmed", "shipped", "delivered"))
def test_no_other_status_releases_stock(shop, products, status):
    product = products.create_product(**a_product())
    created = order_created(reservation_id=a_reservation(shop, product))

    publish(shop, order_status_updated(created, status))

    assert stock(shop, product) == 7
    assert state(shop, created.reservation_id) == "open"


def test_an_abandonment_does_not_release_a_committed_reservation(shop, products):
    product = products.create_product(**a_product())
    reservation_id = a_reservation(shop, product)

    commit(shop, reservation_id)

    publish(shop, OrderAbandoned(reservation_id=reservation_id))

    assert stock(shop, product) == 7
    assert state(shop, reservation_id) == "committed"


@settings(
    max_examples=12,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_events_in_any_order_take_or_release_the_stock_once(shop, products, data):
    """A reservation is settled as ordered, abandoned, or settled and cancelled, each once or twice, in any order."""
    product = products.create_product(**a_product())
    created = order_created(reservation_id=a_reservation(shop, product))
    settled, cancelled = "settled", order_status_updated(created, "cancelled")
    abandoned = OrderAbandoned(reservation_id=created.reservation_id)
    story = data.draw(st.sampled_from(([settled], [abandoned], [settled, cancelled])))
    deliveries = data.draw(st.permutations(story * 2))

    for delivery in deliveries:
        if delivery is settled:
            commit(shop, created.reservation_id)
        else:
            publish(shop, delivery)

    assert stock(shop, product) == (7 if story == [settled] else 10)


# Settling


def test_an_old_reservation_without_an_order_is_released(shop, products):
    product = products.create_product(**a_product())
    reservation_id = a_reservation(shop, product)

    settle(shop, reservation_id)

    assert state(shop, reservation_id) == "released"
    assert stock(shop, product) == 10


def test_an_old_reservation_whose_order_was_placed_is_committed(shop, products):
    product = products.create_product(**a_product())
    place_order(shop.rpc, a_line(product, 3))
    reservation_id = reservation_of(shop, product)

    settle(shop, reservation_id)

    assert state(shop, reservation_id) == "committed"
    assert stock(shop, product) == 7


def test_orders_is_not_asked_about_a_young_reservation(shop, products):
    product = products.create_product(**a_product())
    reservation_id = a_reservation(shop, product)

    shop.fire(shop.containers["products"], "settle_open_reservations")

    assert state(shop, reservation_id) == "open"
    assert shop.sql("orders", "SELECT 1 FROM attempts WHERE reservation_id = %s", reservation_id) == []


def test_nothing_is_released_while_orders_is_unreachable(own_shop):
    container = own_shop.run(Products)
    product = own_shop.rpc.products.create_product(**a_product())
    reservation_id = a_reservation(own_shop, product)
    make_older(own_shop, reservation_id)

    own_shop.fire(container, "settle_open_reservations")
    release = own_shop.rpc.products.release_stock.call_async(reservation_id=str(reservation_id))

    assert isinstance(refusal_of(release), ServiceUnavailable)
    assert state(own_shop, reservation_id) == "open"
    assert stock(own_shop, product) == 7
    own_shop.run(Orders)
    own_shop.fire(container, "settle_open_reservations")
    assert state(own_shop, reservation_id) == "released"
    assert stock(own_shop, product) == 10


def test_a_reservation_of_an_open_attempt_stays(shop, products):
    product = products.create_product(**a_product())
    reservation_id = a_reservation(shop, product)
    make_older(shop, reservation_id)
    have_begun(shop, reservation_id)

    shop.fire(shop.containers["products"], "settle_open_reservations")

    assert state(shop, reservation_id) == "open"
    assert stock(shop, product) == 7


def test_all_due_reservations_are_settled_in_several_batches(shop, products, monkeypatch):
    monkeypatch.setattr(products_service, "SETTLE_BATCH", 2)
    product = products.create_product(**a_product(stock_quantity=10))
    made = [a_reservation(shop, product, 1) for _ in range(7)]
    make_older(shop, *made)
    # Both stay due.
    for reservation_id in sorted(made)[:2]:
        have_begun(shop, reservation_id)

    shop.fire(shop.containers["products"], "settle_open_reservations")

    assert [state(shop, one) for one in sorted(made)] == ["open"] * 2 + ["released"] * 5
    assert stock(shop, product) == 8


def test_a_reservation_that_cannot_be_released_does_not_hold_up_the_others(shop, products):
    full, product = (products.create_product(**a_product(stock_quantity=10)) for _ in range(2))
    stuck, other = sorted([a_reservation(shop, full), a_reservation(shop, full)])
    made = [a_reservation(shop, product) for _ in range(2)]
    make_older(shop, stuck, other, *made)
    shop.sql("products", "UPDATE products SET stock_quantity = %s WHERE id = %s", 2**63 - 1, full["id"])

    shop.fire(shop.containers["products"], "settle_open_reservations")

    assert [state(shop, one) for one in (stuck, other, *made)] == ["open"] * 2 + ["released"] * 2
    assert stock(shop, product) == 10
    # For the gauge of mismatches.
    shop.sql("products", "UPDATE products SET stock_quantity = 4 WHERE id = %s", full["id"])


def test_one_replica_settles_at_a_time(shop, products):
    reservation_id = a_reservation(shop, products.create_product(**a_product()))
    make_older(shop, reservation_id)

    with shop.transaction("products", "SELECT pg_advisory_xact_lock(hashtext('settle reservations'))"):
        shop.fire(shop.containers["products"], "settle_open_reservations")
        assert state(shop, reservation_id) == "open"

    shop.fire(shop.containers["products"], "settle_open_reservations")
    assert state(shop, reservation_id) == "released"


# Operation


def test_an_unreadable_message_is_parked_and_can_be_discarded(shop, products):
    shop.broker.publish("not JSON", queue="evt-orders-order.abandoned--products.release_abandoned_stock")

    [message] = wait_for(lambda: products.list_parked()["messages"])

    assert (message["body"], message["reason"]) == ("not JSON", "not JSON")
    products.discard_parked(message_id=message["message_id"])
    assert products.list_parked() == {"messages": [], "total": 0}


def test_a_call_about_parked_messages_with_an_argument_out_of_bounds_is_refused(products):
    calls = [
        partial(products.list_parked, limit=0),
        partial(products.replay_all_parked, reason=""),
        partial(products.discard_all_parked, left=-1),
    ]

    refused = []
    for call in calls:
        with pytest.raises(InvalidInput) as refusal:
            call()
        refused += refusal.value.errors

    assert refused == ["limit", "reason", "left"]


def test_health_answers_up(products):
    assert products.health() == {"status": "up"}
