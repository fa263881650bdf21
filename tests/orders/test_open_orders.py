"""How much one account may have open."""

import pytest

from contracts.errors import InsufficientStock, KeyReused, TooManyOpenOrders
from services.orders import Orders
from services.products import Products
from tests.factories import a_customer, a_line, a_product, place_order
from tests.shop import refusal_of, running_shop


@pytest.fixture(scope="module")
def shop(brokers, databases, smtp_server):
    """Two replicas of orders. An account may have 5 orders with 12 units open, with a proven address 8 with 40."""
    limits = {
        "RATE_LIMIT_SCALE": "1",
        "MAX_OPEN_ORDERS": "8",
        "MAX_OPEN_UNITS": "40",
        "MAX_OPEN_ORDERS_UNPROVEN": "5",
        "MAX_OPEN_UNITS_UNPROVEN": "12",
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
    """The results of so many calls at once: an order or a refusal each."""
    calls = [shop.rpc.orders.create_order.call_async(items=list(lines), **fields) for _ in range(number)]
    return [refusal_of(call) or call.result() for call in calls]


def refusals(results):
    return [result for result in results if isinstance(result, TooManyOpenOrders)]


@pytest.mark.parametrize("email_verified, most_orders, most_units", ((False, 5, 12), (True, 8, 40)))
def test_of_twenty_orders_at_once_as_many_are_placed_as_may_be_open(
    shop, product, customer, email_verified, most_orders, most_units
):
    results = placed(shop, 20, a_line(product), **customer, email_verified=email_verified)

    refused = refusals(results)
    assert len(refused) == 20 - most_orders
    assert {(refusal.most_orders, refusal.most_units) for refusal in refused} == {(most_orders, most_units)}
    assert shop.rpc.orders.list_orders(user_id=customer["user_id"])["total"] == most_orders
    assert stock(shop, product) == 100 - most_orders


def test_orders_at_once_have_no_more_units_than_may_be_open(shop, product, customer):
    results = placed(shop, 10, a_line(product, 5), **customer)

    assert len(refusals(results)) == 8
    assert stock(shop, product) == 90


def test_an_order_of_more_units_than_may_be_open_is_refused_with_the_figures(shop, product, customer):
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


def test_a_key_comes_before_the_limits(shop, product, customer):
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


def test_an_order_that_is_being_placed_counts_and_one_that_was_refused_does_not(shop, product, customer):
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


def test_orders_of_the_release_before_count_by_their_lines(shop, product, customer):
    place_order(shop.rpc, a_line(product, 10), customer=customer)
    shop.sql("orders", "UPDATE attempts SET units = NULL WHERE user_id = %s", customer["user_id"])

    assert refusals(placed(shop, 1, a_line(product, 3), **customer))


def test_one_account_takes_nothing_from_another(shop, product, customer):
    placed(shop, 5, a_line(product), **customer)

    assert place_order(shop.rpc, a_line(product), customer=a_customer())


@pytest.mark.parametrize("scale, most", (("0.1", (2, 20)), ("0.001", (1, 1)), ("3", (60, 600))))
def test_the_limits_are_multiplied_like_every_other(own_shop, scale, most):
    own_shop.run(Orders, RATE_LIMIT_SCALE=scale)

    with pytest.raises(TooManyOpenOrders) as refusal:
        place_order(own_shop.rpc, {"product_id": 1, "quantity": 1000})

    assert (refusal.value.most_orders, refusal.value.most_units) == most
