"""The events of an order, made from its history: each is the same whenever it is made again."""

from sqlalchemy import select

from contracts.orders import NOT_CONFIRMED, OrderCreated, OrderLine, OrderStatusUpdated
from contracts.types import event_id_of
from services.orders_models import Order, StatusStep
from services.orders_statements import select_with_details

# Orders that are read at once when events are made again.
ORDERS_PER_QUERY = 100


def event_of(order, sequence):
    """The event of an order's step, the same each time it is made."""
    step = order.history[sequence - 1]
    names = ("product_id", "product_name", "product_price", "quantity", "subtotal")
    fields = {
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
    # The one step that the shop takes by itself.
    reason = NOT_CONFIRMED if step.by == "system" else None
    return OrderStatusUpdated(**fields, old_status=old_status, new_status=step.status, reason=reason)


def events_since(session, since):
    """(event, key) of each step that an order took since then, for `ops.resend`.

    Without order.abandoned: products itself asks about its reservations.
    """
    order_ids = sorted(session.scalars(select(StatusStep.order_id).where(StatusStep.at >= since).distinct()))
    for first in range(0, len(order_ids), ORDERS_PER_QUERY):
        chunk = order_ids[first : first + ORDERS_PER_QUERY]
        for order in session.scalars(select_with_details().where(Order.id.in_(chunk)).order_by(Order.id)):
            for sequence, step in enumerate(order.history, 1):
                if step.at >= since:
                    yield event_of(order, sequence), order.id
