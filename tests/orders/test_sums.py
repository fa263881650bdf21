"""The sums of all orders: they are exact at any time, and few rows are read for them."""

import random
import re
from functools import partial

import eventlet
import pytest

from contracts.orders import ORDER_STATUSES, IllegalTransition, OrderQuery
from contracts.types import load
from dev.settings import ROOT
from services.orders import Orders
from services.orders_statements import COUNT_ORDERS, COUNT_SIZE, SUMMARIZE, read_orders, select_unconfirmed
from services.products import Products
from tests.factories import a_customer, a_line, a_product
from tests.infrastructure.days import wait_for_a_day_with_time_left
from tests.infrastructure.plans import filled_database, rows_read
from tests.shop import refusal_of

DAYS = 3
# As the release before writes them, without counted_status.
ADD_ORDERS = """
    WITH attempt AS (
        INSERT INTO attempts (reservation_id, state)
        SELECT gen_random_uuid(), 'ordered' FROM generate_series(1, {number}) RETURNING reservation_id
    ), placed AS (
        INSERT INTO orders (reservation_id, user_id, user_email, status, total_amount, created_at)
        SELECT reservation_id, 1, 'ada@forage.example', (ARRAY{statuses})[1 + mod(n, {count})],
            n * 0.01, now() - mod(n, {days}) * interval '1 day'
        FROM (SELECT reservation_id, row_number() OVER () AS n FROM attempt) AS numbered
        RETURNING id, status, created_at
    )
    INSERT INTO status_steps (order_id, status, by, at) SELECT id, status, 'customer', created_at FROM placed
"""


def add_orders(number, *statuses):
    statuses = statuses or ORDER_STATUSES
    # One day more than a summary of DAYS shows.
    return ADD_ORDERS.format(number=number, statuses=list(statuses), count=len(statuses), days=DAYS + 1)


@pytest.fixture
def orders(own_shop):
    """A replica of the service, with 40 orders of each status that are not counted yet."""
    container = own_shop.run(Orders)
    wait_for_a_day_with_time_left()
    own_shop.sql("orders", add_orders(200))
    return container


def count(shop, *containers):
    for container in containers:
        shop.fire(container, "count_orders")


def uncounted(shop):
    [(number,)] = shop.sql("orders", "SELECT count(*) FROM orders WHERE counted_status IS DISTINCT FROM status")
    return number


def assert_sums_are_exact(shop):
    by_status = dict(shop.sql("orders", "SELECT status, count(*) FROM orders GROUP BY status"))
    by_day = shop.sql(
        "orders",
        """
        SELECT day::date::text, count(id), coalesce(sum(total_amount), 0.00)::text
        FROM date_trunc('day', now() AT TIME ZONE 'UTC') AS today,
            generate_series(today - %s * interval '1 day', today, interval '1 day') AS day
        LEFT JOIN orders ON date_trunc('day', created_at AT TIME ZONE 'UTC') = day AND status <> 'cancelled'
        GROUP BY day ORDER BY day
        """,
        DAYS - 1,
    )

    summary = shop.rpc.orders.summarize_orders(days=DAYS)

    assert summary["by_status"] == dict.fromkeys(ORDER_STATUSES, 0) | by_status
    assert [(day["date"], day["orders"], day["revenue"]) for day in summary["daily"]] == by_day
    assert summary["today"] == {"orders": by_day[-1][1], "revenue": by_day[-1][2]}
    totals = {status: shop.rpc.orders.list_orders(status=status, limit=1)["total"] for status in ORDER_STATUSES}
    assert totals == summary["by_status"]
    assert shop.rpc.orders.list_orders(limit=1)["total"] == sum(by_status.values())


def test_the_sums_of_orders_are_exact_before_and_after_they_are_counted(own_shop, orders):
    assert_sums_are_exact(own_shop)

    count(own_shop, orders)

    assert uncounted(own_shop) == 0
    assert_sums_are_exact(own_shop)


def test_the_sums_are_exact_after_steps_of_counted_orders(own_shop, orders):
    count(own_shop, orders)
    first = {status: own_shop.rpc.orders.list_orders(status=status)["orders"][0] for status in ORDER_STATUSES}

    for order, status in (("pending", "cancelled"), ("confirmed", "shipped"), ("confirmed", "delivered")):
        own_shop.rpc.orders.update_status(order_id=first[order]["id"], status=status)
    # Of a release that does not know the sums.
    own_shop.sql("orders", add_orders(10))
    own_shop.sql("orders", "UPDATE orders SET status = 'cancelled' WHERE status = 'pending' AND mod(id, 3) = 0")

    assert_sums_are_exact(own_shop)
    count(own_shop, orders)
    assert uncounted(own_shop) == 0
    assert_sums_are_exact(own_shop)


def test_more_orders_than_a_batch_are_counted_at_once(own_shop, orders):
    own_shop.sql("orders", add_orders(COUNT_SIZE))

    count(own_shop, orders)

    assert uncounted(own_shop) == 0
    assert_sums_are_exact(own_shop)


def test_an_order_that_takes_a_step_is_counted_later(own_shop, orders):
    with own_shop.transaction("orders", "UPDATE orders SET status = 'cancelled' WHERE status = 'confirmed'"):
        count(own_shop, orders)
        assert uncounted(own_shop) == 40
        assert_sums_are_exact(own_shop)

    assert_sums_are_exact(own_shop)
    count(own_shop, orders)
    assert uncounted(own_shop) == 0
    assert_sums_are_exact(own_shop)


def test_all_orders_can_be_counted_again(own_shop, orders):
    count(own_shop, orders)
    own_shop.sql("orders", "UPDATE order_sums SET orders = orders + 1")

    [recount] = re.findall(r"```sql\n(BEGIN;.+?)```", (ROOT / "docs" / "scaling.md").read_text(), re.DOTALL)
    own_shop.sql("orders", recount)

    assert_sums_are_exact(own_shop)
    count(own_shop, orders)
    assert_sums_are_exact(own_shop)


@pytest.mark.usefixtures("long_deadlines")
def test_every_summary_is_exact_while_two_replicas_count_and_orders_are_placed_and_changed(own_shop, orders):
    replicas = orders, own_shop.run(Orders)
    own_shop.run(Products)
    product = own_shop.rpc.products.create_product(**a_product(stock_quantity=20))
    pending = own_shop.rpc.orders.list_orders(status="pending")["orders"]
    create_order, update_status = own_shop.rpc.orders.create_order, own_shop.rpc.orders.update_status
    starts = [partial(create_order.call_async, **a_customer(), items=[a_line(product)]) for _ in range(20)]
    for status in ("confirmed", "shipped", "cancelled"):
        starts += [partial(update_status.call_async, order_id=order["id"], status=status) for order in pending]
    random.shuffle(starts)
    counting = [eventlet.spawn(count, own_shop, *replicas * 5) for _ in replicas]

    calls = [start() for start in starts]
    totals = []
    for number, call in enumerate(calls):
        assert isinstance(refusal_of(call), IllegalTransition | None)
        if number % 10 == 0:
            totals.append(sum(own_shop.rpc.orders.summarize_orders()["by_status"].values()))
    for each in counting:
        each.wait()

    # No order is missing or counted twice at any moment.
    assert totals == sorted(totals)
    assert 200 <= totals[0] <= totals[-1] <= 220
    assert_sums_are_exact(own_shop)
    count(own_shop, *replicas)
    assert uncounted(own_shop) == 0
    assert_sums_are_exact(own_shop)


# What is read


@pytest.fixture
def connection(database):
    wait_for_a_day_with_time_left()
    with filled_database(database("orders"), add_orders(3000)) as connection:
        yield connection


def with_more_orders(connection, number):
    """Count this number of new orders, and add 20 that are not counted."""
    connection.exec_driver_sql(add_orders(number))
    while connection.exec_driver_sql(COUNT_ORDERS.plain).scalar_one() == COUNT_SIZE:
        pass
    connection.exec_driver_sql(add_orders(20))
    connection.exec_driver_sql("VACUUM ANALYZE")


def test_a_summary_reads_no_more_rows_with_ten_times_the_orders(connection):
    with_more_orders(connection, 0)
    few = rows_read(connection, SUMMARIZE, days=90)

    with_more_orders(connection, 27_000)

    # The rows of sums, and the 20 orders that are not counted.
    assert rows_read(connection, SUMMARIZE, days=90) == few == (DAYS + 1) * len(ORDER_STATUSES) + 20


@pytest.mark.parametrize("query", ({}, {"status": "delivered"}))
def test_a_page_of_all_orders_reads_no_more_rows_with_ten_times_the_orders(connection, query):
    def read(statement, **parameters):
        return [(None, rows_read(connection, statement, **parameters))]

    query = load(OrderQuery(), {**query, "limit": 10})
    with_more_orders(connection, 0)
    few, _ = read_orders(read, None, query)

    with_more_orders(connection, 27_000)

    assert read_orders(read, None, query) == (few, [])


def test_counting_reads_only_orders_that_are_not_counted(connection):
    with_more_orders(connection, 0)

    read = rows_read(connection, COUNT_ORDERS)

    # Each of the 20 is found, and then updated.
    assert read == 40


def test_pending_orders_that_are_not_old_are_not_read(connection):
    connection.exec_driver_sql(add_orders(3000, "pending"))
    connection.exec_driver_sql("VACUUM ANALYZE")
    wanted = select_unconfirmed(hours=24 * 5, number=100).compile(connection, compile_kwargs={"literal_binds": True})

    plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {wanted}").scalars())

    assert "using ix_orders_pending on orders" in plan, plan
