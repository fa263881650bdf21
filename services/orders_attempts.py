"""Begins attempts: finds the attempt of a key, or makes a new one within the limits of its account."""

import hashlib
import json
import math
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import extract, func, select

from contracts.orders import KeyReused, RequestInFlight, TooManyOpenOrders
from contracts.types import JsonObject
from nameko_reliable.database import WorkerDatabase
from services.orders_models import Attempt
from services.orders_statements import BEGIN_ATTEMPT

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
    db: WorkerDatabase, placement: JsonObject, lines: list[JsonObject], max_orders: int, max_units: int
) -> tuple[UUID, str]:
    """(reservation id, state) of the attempt of this key: a new one, one whose lease has ended, or the ordered one.

    placement: as contracts.orders.OrderPlacement. lines: as `merge_items` returns them. max_orders, max_units: the
    limits of the account's open orders.
    Raises KeyReused for another body, RequestInFlight while another call holds the attempt, and TooManyOpenOrders for
    a new attempt.
    """
    reservation_id, fingerprint, units = uuid4(), _fingerprint(lines), sum(line["quantity"] for line in lines)
    [begun] = db.execute(
        BEGIN_ATTEMPT,
        reservation_id=reservation_id,
        user_id=placement["user_id"],
        key=placement["idempotency_key"],
        fingerprint=fingerprint,
        units=units,
        lease_seconds=LEASE_SECONDS,
        max_orders=max_orders,
        max_units=max_units,
    )
    if begun.is_begun:
        return reservation_id, "open"
    with db.transaction() as session:
        attempt = session.scalar(
            select(Attempt)
            .where(
                Attempt.user_id == placement["user_id"],
                Attempt.key == placement["idempotency_key"],
                Attempt.state != "abandoned",
            )
            .with_for_update()
        )
        if attempt is None:
            if begun.orders < max_orders and begun.units + units <= max_units:
                # The key became free after the first statement.
                raise RequestInFlight(1)
            raise TooManyOpenOrders(begun.orders, begun.units, units, max_orders, max_units)
        if attempt.fingerprint != fingerprint:
            raise KeyReused
        if attempt.state == "open":
            # Not now(), the start of this transaction: the lease may have begun later.
            left = extract("epoch", Attempt.leased_until - func.clock_timestamp())
            seconds = session.execute(select(left).where(Attempt.reservation_id == attempt.reservation_id)).scalar_one()
            if seconds > 0:
                raise RequestInFlight(math.ceil(seconds))
            attempt.leased_until = func.now() + timedelta(seconds=LEASE_SECONDS)
        return attempt.reservation_id, attempt.state


def _fingerprint(lines: list[JsonObject]) -> str:
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()
