"""The statements of orders: an order with its details, a page of a list, sums by day and by status, and placing.

Placing locks an account's attempts first (an advisory lock), then one attempt's row. Nothing locks them the other way.
Counting locks orders, for which it never waits, then their sums by day and status. Only counting locks sums.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import selectinload

from contracts.orders import ORDER_STATUSES, OrderItemView, OrderNotFound, OrderStepView, OrderView
from contracts.types import JsonObject, load_id
from nameko_reliable.statements import Statement
from services.orders_models import IS_UNCOUNTED, Order
from services.reading import Execute, ViewTable, list_of, pattern_of

# With items and history from the same statement, so that they agree with the status.
ORDERS = ViewTable(
    "orders",
    OrderView(),
    items=list_of(OrderItemView(), "order_items", "order_id = orders.id"),
    history=list_of(OrderStepView(), "status_steps", "order_id = orders.id"),
)


# `changed`: orders that are not counted yet, or took a step since.
UNCOUNTED = f"""
    SELECT id, CAST(created_at AT TIME ZONE 'UTC' AS date) AS day, status, counted_status, total_amount
    FROM orders WHERE {IS_UNCOUNTED}
"""
# What they change in the sums: each counts with its new status, and not with the one with which it is counted.
CHANGES_OF_SUMS = """
    SELECT day, change.status, change.orders, change.orders * total_amount AS revenue
    FROM changed
    CROSS JOIN LATERAL (VALUES (changed.status, 1), (changed.counted_status, -1)) AS change (status, orders)
    WHERE change.status IS NOT NULL
"""
# All orders, in sums. The result is exact in each snapshot, since an order is counted in one transaction.
SUMS = f"""
    WITH changed AS ({UNCOUNTED})
    SELECT day, status, orders, revenue FROM order_sums UNION ALL ({CHANGES_OF_SUMS})
"""
HAS_STATUS = "status = %(status)s::text"
NUMBER_OF_ORDERS = f"SELECT CAST(coalesce(sum(orders), 0) AS bigint) FROM ({SUMS}) AS sums"
NUMBER_WITH_STATUS = f"{NUMBER_OF_ORDERS} WHERE {HAS_STATUS}"


def select_with_details() -> Select[tuple[Order]]:
    """Orders with their items and history."""
    return select(Order).options(selectinload(Order.items), selectinload(Order.history))


def select_unconfirmed(hours: float, number: int) -> Select[tuple[Order]]:
    """Orders that have been pending for longer than that, the oldest first, locked.

    An order that is locked is skipped: it is taking a step, or a later round finds it.
    """
    unconfirmed = select_with_details().where(
        Order.status == "pending", Order.created_at < func.now() - timedelta(hours=hours)
    )
    # PostgreSQL checks the conditions again once it has the lock.
    return unconfirmed.order_by(Order.created_at).limit(number).with_for_update(of=Order, skip_locked=True)


def read_order(execute: Execute, order_id: int, user_id: int | None) -> JsonObject:
    """user_id: the owner, None for any. Raises OrderNotFound."""
    orders = ORDERS.find(execute, "WHERE id = %(id)s::bigint", id=load_id(order_id, "order_id"))
    if not orders or user_id not in (None, orders[0]["user_id"]):
        raise OrderNotFound(order_id)
    return orders[0]


def read_orders(execute: Execute, user_id: int | None, query: Mapping[str, Any]) -> tuple[int, list[JsonObject]]:
    """(total, the orders of the page), newest first. user_id: the owner, None for all.

    query: as contracts.orders.OrderQuery.
    """
    conditions: list[str] = []
    parameters: JsonObject = {}
    if user_id is not None:
        conditions.append("user_id = %(user_id)s::bigint")
        parameters["user_id"] = load_id(user_id, "user_id")
    if query["status"] is not None:
        conditions.append(HAS_STATUS)
        parameters["status"] = query["status"]
    if query["q"]:
        is_id = query["q"].isascii() and query["q"].isdecimal() and len(query["q"]) < 19
        conditions.append("(user_email ILIKE %(pattern)s::text OR id = %(id)s::bigint)")
        parameters |= {"pattern": pattern_of(query["q"]), "id": int(query["q"]) if is_id else None}
    if query["created_from"] is not None or query["created_to"] is not None:
        # Always both: without their values PostgreSQL expects few orders between two times, and uses the index.
        conditions.append("created_at >= %(created_from)s::timestamptz AND created_at < %(created_to)s::timestamptz")
        parameters |= {
            "created_from": query["created_from"] or "-infinity",
            "created_to": query["created_to"] or "infinity",
        }
    # Of the whole table, or of a status, most orders are counted already.
    total = {"": NUMBER_OF_ORDERS, HAS_STATUS: NUMBER_WITH_STATUS}.get(" ".join(conditions), "")
    return ORDERS.page(execute, conditions, "id DESC", query["limit"], query["offset"], total=total, **parameters)


COUNT_SIZE = 1000

# Counts orders, in batches of at most COUNT_SIZE. One row, with their number. An order that is locked is taking a step,
# or another replica counts it. The values are those of the locked rows: o is the row as of the begin of the statement.
COUNT_ORDERS = Statement(f"""
WITH changed AS MATERIALIZED (
    {UNCOUNTED} ORDER BY id LIMIT {COUNT_SIZE} FOR NO KEY UPDATE SKIP LOCKED
), counted AS (
    UPDATE orders o SET counted_status = changed.status FROM changed WHERE o.id = changed.id
), added AS (
    INSERT INTO order_sums AS s (day, status, orders, revenue)
    SELECT day, status, sum(orders), sum(revenue) FROM ({CHANGES_OF_SUMS}) AS changes
    -- In one order, so two replicas cannot deadlock.
    GROUP BY day, status ORDER BY day, status
    ON CONFLICT (day, status) DO UPDATE SET orders = s.orders + excluded.orders, revenue = s.revenue + excluded.revenue
)
SELECT count(*) AS orders FROM changed
""")

# A row for each status, with the number of all orders, and one for each of the last days that has orders, without
# cancelled ones. Without orders one row with the date alone.
SUMMARIZE = Statement(f"""
SELECT clock.today, total.status, total.day, total.orders, total.sold, total.revenue
FROM (SELECT CAST(now() AT TIME ZONE 'UTC' AS date) AS today) AS clock LEFT JOIN (
    SELECT status, day, CAST(sum(orders) AS bigint) AS orders,
           CAST(coalesce(sum(orders) FILTER (WHERE status <> 'cancelled'), 0) AS bigint) AS sold,
           coalesce(sum(revenue) FILTER (WHERE status <> 'cancelled'), 0.00) AS revenue
    FROM ({SUMS}) AS sums GROUP BY GROUPING SETS ((status), (day))
) AS total ON total.day IS NULL OR total.day > clock.today - %(days)s::integer
""")


def summarize(execute: Execute, days: int) -> JsonObject:
    """The answer of `summarize_orders`."""
    by_status = dict.fromkeys(ORDER_STATUSES, 0)
    by_day: dict[date, tuple[int, Decimal]] = {}
    rows = list(execute(SUMMARIZE, days=days))
    today = rows[0][0]
    for _, status, day, orders, sold, revenue in rows:
        if status is not None:
            by_status[status] = orders
        elif day is not None:
            by_day[day] = sold, revenue
    daily = []
    for day in [today - timedelta(days=age) for age in reversed(range(days))]:
        orders, revenue = by_day.get(day, (0, Decimal("0.00")))
        daily.append({"date": day.isoformat(), "orders": orders, "revenue": str(revenue)})
    return {
        "today": {name: daily[-1][name] for name in ("orders", "revenue")},
        "by_status": by_status,
        "daily": daily,
    }


# One statement, so that the limits are counted in the snapshot in which the attempt is inserted. The lock comes first:
# each of a user's concurrent attempts counts those before it.
# One row. is_begun: the attempt is made. Otherwise the key had an attempt that was not abandoned, or a limit was
# reached; both may have changed since. orders, units: of the account, without this attempt.
BEGIN_ATTEMPT = Statement(
    """
WITH parts AS (
    -- The conditions are literally those of the indexes. A join might read all items of the shop.
    SELECT count(*) AS orders, sum((SELECT sum(i.quantity) FROM order_items i WHERE i.order_id = o.id)) AS units
    FROM orders o WHERE o.user_id = %(user_id)s::bigint AND o.status IN ('pending', 'confirmed')
    UNION ALL
    SELECT count(*), sum(a.units) FROM attempts a WHERE a.user_id = %(user_id)s::bigint AND a.state = 'open'
), open_now AS MATERIALIZED (
    SELECT CAST(sum(orders) AS bigint) AS orders, CAST(coalesce(sum(units), 0) AS bigint) AS units,
           clock_timestamp() - statement_timestamp()
               > make_interval(secs => %(seconds_left)s::float8) IS TRUE AS is_late
    FROM parts
), begun AS (
    INSERT INTO attempts (reservation_id, user_id, key, fingerprint, units, state, leased_until)
    SELECT %(reservation_id)s::uuid, %(user_id)s::bigint, %(key)s::text, %(fingerprint)s::text, %(units)s::integer,
           'open', now() + make_interval(secs => %(lease_seconds)s::float8)
    FROM open_now n
    WHERE n.orders < %(max_orders)s::bigint AND n.units + %(units)s::integer <= %(max_units)s::bigint AND NOT n.is_late
    ON CONFLICT (user_id, key) WHERE state <> 'abandoned' DO NOTHING
    RETURNING reservation_id
)
SELECT n.is_late, n.orders, n.units, EXISTS (SELECT FROM begun) AS is_begun FROM open_now n
""",
    lock="hashtext('open orders of ' || %(user_id)s::bigint)",
)

# The attempt's row is locked before anything is written: order, event and the attempt's step are one decision.
# order_id and timestamp of the event are filled in here.
# One row. state: the attempt's when it was locked. open: it is an ordered one now, and id, created_at and item_ids (in
# the order of the lines) are the order's. ordered: a faster call made the order. abandoned, or null if there is no such
# attempt: there is no order and there will be none. In these cases nothing was written.
PLACE_ORDER = Statement("""
WITH locked AS MATERIALIZED (
    SELECT a.state FROM attempts a WHERE a.reservation_id = %(reservation_id)s::uuid FOR UPDATE
), tested AS MATERIALIZED (
    SELECT max(state) AS state,
           clock_timestamp() - statement_timestamp()
               > make_interval(secs => %(seconds_left)s::float8) IS TRUE AS is_late
    FROM locked
), ordered AS (
    UPDATE attempts a SET state = 'ordered' FROM tested t
    WHERE a.reservation_id = %(reservation_id)s::uuid AND t.state = 'open' AND NOT t.is_late
    RETURNING a.reservation_id
), placed AS (
    INSERT INTO orders (reservation_id, user_id, user_email, email_verified, status, total_amount)
    SELECT reservation_id, %(user_id)s::bigint, %(user_email)s::text, %(email_verified)s::boolean, 'pending',
           %(total_amount)s::numeric
    FROM ordered
    RETURNING id, created_at
), sold AS (
    INSERT INTO order_items (order_id, product_id, product_name, product_price, quantity, subtotal)
    SELECT p.id, line.product_id, line.name, line.price, line.quantity, line.subtotal
    FROM placed p CROSS JOIN unnest(
        %(product_ids)s::bigint[], %(names)s::text[], %(prices)s::numeric[], %(quantities)s::integer[],
        %(subtotals)s::numeric[]
    ) WITH ORDINALITY AS line (product_id, name, price, quantity, subtotal, number)
    ORDER BY line.number
    RETURNING id
), step AS (
    INSERT INTO status_steps (order_id, status, by, at) SELECT id, 'pending', 'customer', created_at FROM placed
), event AS (
    INSERT INTO outbox (event_id, event_name, key, payload, request_id, traceparent)
    SELECT %(event_id)s::uuid, %(event_name)s::text, CAST(p.id AS text),
           %(payload)s::jsonb || jsonb_build_object(
               'order_id', p.id,
               'timestamp', to_char(p.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
           ),
           %(request_id)s::text, %(traceparent)s::text
    FROM placed p
)
SELECT t.is_late, t.state, p.id, p.created_at, (SELECT array_agg(s.id ORDER BY s.id) FROM sold s) AS item_ids
FROM tested t LEFT JOIN placed p ON true
""")


def columns_of(order: Order) -> JsonObject:
    """The parameters of PLACE_ORDER for a new order, without its event's."""
    items = order.items
    return {
        "reservation_id": order.reservation_id,
        "user_id": order.user_id,
        "user_email": order.user_email,
        "email_verified": order.email_verified,
        "total_amount": order.total_amount,
        "product_ids": [item.product_id for item in items],
        "names": [item.product_name for item in items],
        "prices": [item.product_price for item in items],
        "quantities": [item.quantity for item in items],
        "subtotals": [item.subtotal for item in items],
    }


# Reservations that orders does not know are stored as abandoned attempts, in id order, so that a late order fails. A
# second caller with the same ids waits for the first one, and then finds them.
ABANDON_UNKNOWN = Statement("""
INSERT INTO attempts (reservation_id, state)
SELECT id, 'abandoned' FROM unnest(%(reservation_ids)s::uuid[]) AS asked (id) ORDER BY id
ON CONFLICT (reservation_id) DO NOTHING
""")

# The ids of open attempts past their lease, locked in id order.
LOCK_EXPIRED = Statement("""
SELECT reservation_id FROM attempts
WHERE reservation_id = ANY (%(reservation_ids)s::uuid[]) AND state = 'open' AND leased_until < now()
ORDER BY reservation_id FOR UPDATE
""")

# The ids of open attempts whose lease ended two minutes ago: their call has died. Locked in id order. An attempt that
# another call is taking over, placing or abandoning is locked, and skipped.
LOCK_DEAD = Statement("""
SELECT reservation_id FROM attempts
WHERE state = 'open' AND leased_until < now() - interval '2 minutes'
ORDER BY reservation_id FOR UPDATE SKIP LOCKED
""")

ATTEMPT_STATES = Statement("""
SELECT reservation_id, state FROM attempts WHERE reservation_id = ANY (%(reservation_ids)s::uuid[])
""")
