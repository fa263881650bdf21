"""The begin of an attempt: it is found by its key, or made within the limits of its account."""

import hashlib
import json
import math
from datetime import timedelta
from uuid import uuid4

from sqlalchemy import extract, func, literal, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from contracts.orders import KeyReused, RequestInFlight, TooManyOpenOrders
from contracts.types import JsonObject
from services.orders_models import Attempt, open_orders

LEASE_SECONDS = 10


def merge_items(items: list[JsonObject]) -> list[JsonObject]:
    """One line for each product, by id, with the sum of its quantities. Prices are strings."""
    lines: dict[int, JsonObject] = {}
    for item in items:
        line = lines.setdefault(item["product_id"], {"product_id": item["product_id"], "quantity": 0})
        line["quantity"] += item["quantity"]
        if "unit_price" in item:
            line["unit_price"] = str(item["unit_price"])
    return [lines[product_id] for product_id in sorted(lines)]


def begin_attempt(
    session: Session, placement: JsonObject, lines: list[JsonObject], max_orders: int, max_units: int
) -> Attempt:
    """The attempt of this key: a new one, one whose lease has ended, or the ordered one.

    placement: as contracts.orders.OrderPlacement. lines: as `merge_items` returns them. max_orders, max_units: the
    limits of the account's open orders.
    Raises KeyReused for another body, RequestInFlight while another call holds the attempt, and TooManyOpenOrders for
    a new attempt.
    """
    user_id, key, fingerprint = placement["user_id"], placement["idempotency_key"], _fingerprint(lines)
    units = sum(line["quantity"] for line in lines)
    open_now = open_orders(user_id)
    lease = func.now() + timedelta(seconds=LEASE_SECONDS)
    values = {
        "reservation_id": literal(uuid4()),
        "user_id": literal(user_id),
        "key": literal(key),
        "fingerprint": literal(fingerprint),
        "units": literal(units),
        "state": literal("open"),
        "leased_until": lease,
    }
    within_limits = select(*values.values()).where(
        open_now.c.orders < max_orders, open_now.c.units + units <= max_units
    )
    # Under a lock, so that each of a user's concurrent attempts counts those before it.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"open orders of {user_id}"))))
    attempt = session.scalar(
        insert(Attempt)
        .from_select(list(values), within_limits)
        .on_conflict_do_nothing(index_elements=["user_id", "key"], index_where=text("state <> 'abandoned'"))
        .returning(Attempt)
    )
    if attempt is not None:
        return attempt
    attempt = session.scalar(
        select(Attempt)
        .where(Attempt.user_id == user_id, Attempt.key == key, Attempt.state != "abandoned")
        .with_for_update()
    )
    if attempt is None:
        orders, open_units = session.execute(select(open_now.c.orders, open_now.c.units)).one()
        if orders < max_orders and open_units + units <= max_units:
            # The key became free, or an order was closed, after the first statement.
            raise RequestInFlight(1)
        raise TooManyOpenOrders(orders, open_units, units, max_orders, max_units)
    if attempt.fingerprint != fingerprint:
        raise KeyReused
    if attempt.state == "open":
        # Not now(), the begin of this transaction: the lease may have begun later.
        left = extract("epoch", Attempt.leased_until - func.clock_timestamp())
        seconds = session.execute(select(left).where(Attempt.reservation_id == attempt.reservation_id)).scalar_one()
        if seconds > 0:
            raise RequestInFlight(math.ceil(seconds))
        attempt.leased_until = lease
    return attempt


def _fingerprint(lines: list[JsonObject]) -> str:
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()
