"""The events of an order, made from its history. An event that is made again is the same."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.orders import NOT_CONFIRMED, OrderCreated, OrderLine, OrderStatusUpdated
from contracts.types import event_id_of
from nameko_reliable.messages import Event
from services.orders_models import Order, StatusStep
from services.orders_statements import select_with_details

ORDERS_PER_QUERY = 100


def event_of(order: Order, sequence: int) -> OrderCreated | OrderStatusUpdated:
    """The event of the step with this sequence."""
    step = order.history[sequence - 1]
    names = ("product_id", "product_name", "product_price", "quantity", "subtotal")
    fields: dict[str, Any] = {
        "event_id": event_id_of("order", order.reservation_id, sequence),
        "timestamp": step.at,
        "order_id": order.id,
        "sequence": sequence,
        "user_id": order.user_id,
        "user_email": order.user_email,
        "email_verified": order.email_verified,
        "status": step.status,
        "items": tuple(OrderLine(**{name: getattr(item, name) for name in names}) for item in order.items),
        "total_amount": order.total_amount,
        "reservation_id": order.reservation_id,
    }
    if sequence == 1:
        return OrderCreated(**fields)
    old_status = order.history[sequence - 2].status
    # The only step that the shop itself takes.
    reason = NOT_CONFIRMED if step.by == "system" else None
    return OrderStatusUpdated(**fields, old_status=old_status, new_status=step.status, reason=reason)


def events_since(session: Session, since: datetime) -> Iterator[tuple[Event, int]]:
    """(event, key) of each step of an order since then, for `ops.resend`.

    Without order.abandoned: products asks about its open reservations.
    """
    order_ids = sorted(session.scalars(select(StatusStep.order_id).where(StatusStep.at >= since).distinct()))
    for first in range(0, len(order_ids), ORDERS_PER_QUERY):
        chunk = order_ids[first : first + ORDERS_PER_QUERY]
        for order in session.scalars(select_with_details().where(Order.id.in_(chunk)).order_by(Order.id)):
            for sequence, step in enumerate(order.history, 1):
                if step.at >= since:
                    yield event_of(order, sequence), order.id
