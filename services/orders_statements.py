"""The queries of orders: an order with its details, a page of a list, and sums by day and by status."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Date, Select, cast, func, or_, select
from sqlalchemy.orm import Session, selectinload

from contracts.orders import ORDER_STATUSES
from contracts.types import JsonObject, load_id
from services.orders_models import Order


def select_with_details() -> Select[tuple[Order]]:
    """Orders with their items and history."""
    return select(Order).options(selectinload(Order.items), selectinload(Order.history))


def search_orders(session: Session, user_id: int | None, query: Mapping[str, Any]) -> tuple[int, Iterable[Order]]:
    """(total, the orders of the page), newest first. user_id: the owner, None for all.

    query: as contracts.orders.OrderQuery.
    """
    conditions: list[ColumnElement[bool]] = []
    if user_id is not None:
        conditions.append(Order.user_id == load_id(user_id, "user_id"))
    if query["status"] is not None:
        conditions.append(Order.status == query["status"])
    if query["q"]:
        is_id = query["q"].isascii() and query["q"].isdecimal() and len(query["q"]) < 19
        conditions.append(
            or_(
                Order.user_email.icontains(query["q"], autoescape=True),
                Order.id == (int(query["q"]) if is_id else None),
            )
        )
    if query["created_from"] is not None:
        conditions.append(Order.created_at >= query["created_from"])
    if query["created_to"] is not None:
        conditions.append(Order.created_at < query["created_to"])
    page = (
        select_with_details().where(*conditions).order_by(Order.id.desc()).offset(query["offset"]).limit(query["limit"])
    )
    total = session.execute(select(func.count()).select_from(Order).where(*conditions)).scalar_one()
    return total, session.scalars(page)


def summarize(session: Session, days: int) -> JsonObject:
    """The answer of `summarize_orders`."""
    # The connection's time zone is UTC.
    day = cast(Order.created_at, Date)
    today = session.execute(select(func.current_date())).scalar_one()
    dates = [today - timedelta(days=age) for age in reversed(range(days))]
    sums = session.execute(
        select(day, func.count(), func.sum(Order.total_amount))
        .where(Order.created_at >= dates[0], Order.status != "cancelled")
        .group_by(day)
    ).all()
    counts = session.execute(select(Order.status, func.count()).group_by(Order.status)).all()
    by_date = {date: (orders, revenue) for date, orders, revenue in sums}
    by_status = dict.fromkeys(ORDER_STATUSES, 0) | {status: count for status, count in counts}
    daily = []
    for date in dates:
        orders, revenue = by_date.get(date, (0, Decimal("0.00")))
        daily.append({"date": date.isoformat(), "orders": orders, "revenue": str(revenue)})
    return {
        "today": {name: daily[-1][name] for name in ("orders", "revenue")},
        "by_status": by_status,
        "daily": daily,
    }
