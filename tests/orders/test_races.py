"""Concurrent calls: what must never happen in any order of events."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from contracts.orders import IllegalTransition
from contracts.products import InsufficientStock, PriceChanged
from nameko_reliable.testing.waiting import wait_for
from services.orders import Orders
from services.products import Products
from tests.factories import a_customer, a_line, a_product, place_order
from tests.shop import refusal_of

pytestmark = pytest.mark.usefixtures("long_deadlines")


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


def sold(shop, product):
    """The units in orders that were not cancelled."""
    [(units,)] = shop.sql(
        "orders",
        "SELECT coalesce(sum(quantity), 0) FROM order_items i JOIN orders o ON o.id = i.order_id"
        " WHERE product_id = %s AND status <> 'cancelled'",
        product["id"],
    )
    return units


def start_placing(shop, *lines):
    return shop.rpc.orders.create_order.call_async(**a_customer(), items=list(lines))


def test_forty_concurrent_buyers_of_the_last_ten_units_buy_exactly_ten(shop):
    product = shop.rpc.products.create_product(**a_product(stock_quantity=10))

    calls = [start_placing(shop, a_line(product)) for _ in range(40)]

    refusals = [refusal_of(call) for call in calls]
    assert refusals.count(None) == 10
    assert sum(isinstance(refusal, InsufficientStock) for refusal in refusals) == 30
    assert stock(shop, product) == 0
    assert sold(shop, product) == 10


def test_forty_buyers_at_two_replicas_of_each_service_buy_exactly_ten(own_shop):
    for service in (Orders, Products) * 2:
        own_shop.run(service)
    product = own_shop.rpc.products.create_product(**a_product(stock_quantity=10))

    calls = [start_placing(own_shop, a_line(product)) for _ in range(40)]

    refusals = [refusal_of(call) for call in calls]
    assert refusals.count(None) == 10
    assert stock(own_shop, product) == 0
    assert sold(own_shop, product) == 10
    # Both relays and both consumers work at the same time. Every event must have its effect once.
    wait_for(lambda: own_shop.sql("products", "SELECT count(*) FROM inbox") == [(30,)])
    states = "SELECT state, count(*) FROM reservations GROUP BY state ORDER BY state"
    assert own_shop.sql("products", states) == [("open", 10), ("released", 30)]
    assert own_shop.broker.consumers("rpc-orders") == own_shop.broker.consumers("rpc-products") == 2


def test_two_buyers_with_crossed_carts_never_deadlock(shop):
    one, other = (shop.rpc.products.create_product(**a_product(stock_quantity=100)) for _ in range(2))

    calls = [
        start_placing(shop, *lines)
        for _ in range(20)
        for lines in ((a_line(one), a_line(other)), (a_line(other), a_line(one)))
    ]

    assert [refusal_of(call) for call in calls] == [None] * 40
    assert (stock(shop, one), stock(shop, other)) == (60, 60)


def test_concurrent_cancels_of_one_order_release_its_stock_once(shop):
    product = shop.rpc.products.create_product(**a_product(stock_quantity=10))
    order = place_order(shop.rpc, a_line(product, 4))

    calls = [shop.rpc.orders.update_status.call_async(order_id=order["id"], status="cancelled") for _ in range(10)]

    refusals = [refusal_of(call) for call in calls]
    assert refusals.count(None) == 1
    assert sum(isinstance(refusal, IllegalTransition) for refusal in refusals) == 9
    wait_for(lambda: stock(shop, product) == 10)


PRODUCT = st.integers(0, 2)
STEP = st.one_of(
    st.tuples(st.just("order"), st.lists(st.tuples(PRODUCT, st.integers(1, 6)), min_size=1, max_size=3)),
    st.tuples(st.just("order at a price"), PRODUCT, st.sampled_from(("14.50", "15.00"))),
    st.tuples(st.just("move"), st.integers(0, 8), st.sampled_from(("cancelled", "cancelled", "confirmed", "shipped"))),
    st.tuples(st.just("restock"), PRODUCT, st.integers(-4, 8)),
    st.tuples(st.just("price"), PRODUCT, st.sampled_from(("14.50", "15.00"))),
)
# The steps of one list run concurrently.
HISTORY = st.lists(st.lists(STEP, min_size=1, max_size=8), min_size=1, max_size=5)


# Without shrinking: a race seldom fails twice.
@settings(
    max_examples=12,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=HISTORY)
def test_sold_units_and_remaining_stock_always_add_up(shop, history):
    products = [shop.rpc.products.create_product(**a_product(stock_quantity=10)) for _ in range(3)]
    put_in, orders = [10, 10, 10], []

    for steps in history:
        calls = [(step, start(shop, step, products, orders)) for step in steps]
        for step, call in calls:
            refusal = refusal_of(call) if call else None
            assert refusal is None or isinstance(refusal, (InsufficientStock, PriceChanged, IllegalTransition))
            if call and refusal is None and step[0].startswith("order"):
                orders.append(call.result())
            if call and refusal is None and step[0] == "restock":
                put_in[step[1]] += step[2]
        assert all(stock(shop, product) >= 0 for product in products)

    for product, quantity in zip(products, put_in, strict=True):
        wait_for(lambda product=product, quantity=quantity: stock(shop, product) == quantity - sold(shop, product))


def start(shop, step, products, orders):
    kind, *values = step
    if kind == "order":
        return start_placing(shop, *[a_line(products[number], quantity) for number, quantity in values[0]])
    if kind == "order at a price":
        return start_placing(shop, a_line(products[values[0]], unit_price=values[1]))
    if kind == "restock":
        return shop.rpc.products.set_stock.call_async(product_id=products[values[0]]["id"], delta=values[1])
    if kind == "price":
        return shop.rpc.products.update_product.call_async(product_id=products[values[0]]["id"], price=values[1])
    if values[0] < len(orders):
        return shop.rpc.orders.update_status.call_async(order_id=orders[values[0]]["id"], status=values[1])
    return None
