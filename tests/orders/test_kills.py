"""Orders is killed at the worst moments: nothing is lost, and a repeat with the same key gets one order."""

import psutil
import pytest

from contracts.orders import OrderCreated, RequestInFlight
from nameko_reliable.testing.waiting import wait_for
from services.notifications import Notifications
from services.orders import Orders
from services.products import Products
from tests.factories import a_customer, a_line, a_product, place_order


@pytest.fixture
def product(own_shop):
    own_shop.run(Products)
    return own_shop.rpc.products.create_product(**a_product(stock_quantity=10))


@pytest.fixture
def customer():
    return a_customer()


@pytest.fixture
def start_orders(own_shop, processes):
    """`start_orders()` starts a replica of orders, and returns once it and the other live ones consume calls."""
    started = []

    def every_live_replica_consumes():
        living = [server for server in started if server.process.poll() is None]
        return own_shop.broker.consumers("rpc-orders") == len(living)

    def start():
        # The broker may still count a killed replica as a consumer, and delete the queue with it.
        wait_for(every_live_replica_consumes)
        started.append(processes.start("services.orders"))
        wait_for(every_live_replica_consumes)
        return started[-1]

    return start


def stock(shop, product):
    return shop.rpc.products.get_product(product_id=product["id"])["stock_quantity"]


def states(shop):
    return [state for (state,) in shop.sql("products", "SELECT state FROM reservations")]


def test_a_repeat_after_a_kill_between_reservation_and_commit_places_the_order(
    own_shop, start_orders, product, customer
):
    orders = start_orders()
    with own_shop.client() as lost_client:
        with own_shop.transaction("orders", "LOCK TABLE orders IN EXCLUSIVE MODE"):
            lost_client.orders.create_order.call_async(**customer, items=[a_line(product, 3)], idempotency_key="key")
            own_shop.wait_until_locked("orders")
            assert states(own_shop) == ["open"]

            orders.kill()

    start_orders()
    with pytest.raises(RequestInFlight):
        place_order(own_shop.rpc, a_line(product, 3), customer=customer, key="key")
    own_shop.sql("orders", "UPDATE attempts SET leased_until = now()")
    order = place_order(own_shop.rpc, a_line(product, 3), customer=customer, key="key")
    assert place_order(own_shop.rpc, a_line(product, 3), customer=customer, key="key") == order
    assert own_shop.rpc.orders.list_orders()["total"] == 1
    assert stock(own_shop, product) == 7


def test_a_kill_between_reservation_and_commit_without_a_repeat_releases_the_stock(
    own_shop, start_orders, product, customer
):
    settling = own_shop.run(Products, SETTLE_AFTER_SECONDS="0")
    orders = start_orders()
    with own_shop.client() as lost_client:
        with own_shop.transaction("orders", "LOCK TABLE orders IN EXCLUSIVE MODE"):
            lost_client.orders.create_order.call_async(**customer, items=[a_line(product, 3)], idempotency_key="key")
            own_shop.wait_until_locked("orders")

            orders.kill()

    start_orders()
    own_shop.fire(settling, "settle_open_reservations")
    assert (states(own_shop), stock(own_shop, product)) == (["open"], 7)
    own_shop.sql("orders", "UPDATE attempts SET leased_until = now()")
    own_shop.fire(settling, "settle_open_reservations")
    assert (states(own_shop), stock(own_shop, product)) == (["released"], 10)
    assert own_shop.rpc.orders.list_orders()["total"] == 0


def test_a_kill_between_commit_and_publishing_loses_no_event(own_shop, start_orders, product, customer, smtp):
    own_shop.run(Notifications)
    orders = start_orders()
    with own_shop.outbox(Orders).held() as pending:
        order = place_order(own_shop.rpc, a_line(product, 3), customer=customer, key="key")

        orders.kill()

        assert [type(event) for event in pending()] == [OrderCreated]

    start_orders()
    assert place_order(own_shop.rpc, a_line(product, 3), customer=customer, key="key") == order
    wait_for(lambda: len(smtp.messages(to=customer["user_email"])) == 1)
    assert own_shop.outbox(Orders).pending() == []
    assert stock(own_shop, product) == 7


def test_a_kill_of_one_of_two_replicas_during_a_call_makes_one_order(own_shop, start_orders, product, customer):
    replicas = [start_orders(), start_orders()]
    with own_shop.client() as client:
        with own_shop.transaction("orders", "LOCK TABLE orders IN EXCLUSIVE MODE"):
            call = client.orders.create_order.call_async(**customer, items=[a_line(product, 3)], idempotency_key="key")
            own_shop.wait_until_locked("orders")

            busy_replica(own_shop, replicas).kill()

        # The broker delivers the call to the other replica, which must not execute it within the lease.
        with pytest.raises(RequestInFlight):
            call.result()

    own_shop.sql("orders", "UPDATE attempts SET leased_until = now()")
    assert place_order(own_shop.rpc, a_line(product, 3), customer=customer, key="key")
    assert own_shop.rpc.orders.list_orders()["total"] == 1
    assert stock(own_shop, product) == 7


def busy_replica(shop, replicas):
    """The replica that waits for a lock in its database."""
    [(port,)] = shop.sql(
        "orders",
        "SELECT client_port FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = 'orders'",
    )
    for replica in replicas:
        if port in [connection.laddr.port for connection in psutil.Process(replica.process.pid).net_connections()]:
            return replica
    raise AssertionError("none of the replicas has this connection")


def test_on_a_new_broker_an_event_waits_for_the_first_start_of_notifications(
    own_shop, start_orders, product, customer, smtp
):
    start_orders()

    order = place_order(own_shop.rpc, a_line(product), customer=customer)

    queue = "evt-orders-order.created--notifications.confirm_order"
    wait_for(lambda: own_shop.broker.depth(queue) == 1)
    own_shop.run(Notifications)
    [mail] = wait_for(lambda: smtp.messages(to=customer["user_email"]))
    assert str(order["id"]) in mail["Subject"]
