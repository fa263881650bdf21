"""What PostgreSQL reads of large tables: for a page of orders, and for dead attempts."""

from datetime import UTC, datetime, timedelta

import pytest

from contracts.orders import OrderQuery
from contracts.types import load
from services.orders_statements import LOCK_DEAD, read_orders
from tests.infrastructure.plans import explaining, filled_database

ORDERS = """
    WITH attempt AS (
        INSERT INTO attempts (reservation_id, state)
        SELECT gen_random_uuid(), 'ordered' FROM generate_series(1, 10000) RETURNING reservation_id
    )
    INSERT INTO orders (reservation_id, user_id, user_email, status, total_amount)
    SELECT reservation_id, mod(n, 10), 'ada@forage.example',
        (ARRAY['pending', 'shipped', 'delivered'])[1 + mod(n, 3)], 1
    FROM (SELECT reservation_id, row_number() OVER () AS n FROM attempt) AS numbered
"""


@pytest.fixture
def connection(database):
    with filled_database(database("orders"), ORDERS) as connection:
        yield connection


def plan_of(connection, user_id=None, **query):
    plan, _ = read_orders(explaining(connection), user_id, load(OrderQuery(), query))
    return plan


@pytest.mark.parametrize(
    "query, index",
    (
        ({}, "orders_pkey"),
        ({"user_id": 7}, "ix_orders_user_id_id"),
        ({"status": "delivered"}, "ix_orders_status_id"),
    ),
)
def test_of_the_orders_before_a_page_only_an_index_is_read(connection, query, index):
    plan = plan_of(connection, **query, offset=900, limit=10)

    assert f"Index Only Scan Backward using {index} on orders" in plan, plan


@pytest.mark.parametrize("bound", ("created_from", "created_to"))
def test_orders_of_a_time_are_read_by_its_index(connection, bound):
    plan = plan_of(connection, **{bound: (datetime.now(UTC) - timedelta(days=1)).isoformat()})

    assert "ix_orders_created_at" in plan, plan
    # In the order of the list, it would read all orders until it has found those of the page.
    assert "Scan Backward using orders_pkey" not in plan, plan


def test_dead_attempts_are_found_among_the_open_ones(connection):
    [(_, plan)] = explaining(connection)(LOCK_DEAD)

    assert "ix_attempts_open" in plan and "Seq Scan" not in plan, plan
