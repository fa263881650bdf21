"""The queries of notifications: one notification, a page of a list, the number and the age of unsent mails."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, literal, or_, select, union_all
from sqlalchemy.orm import Session

from contracts.notifications import NotificationNotFound
from contracts.types import fold_address, load_id
from services.notifications_models import SUMMARY_NAME, UNPROVEN_WINDOW, Notification

COUNT_MAILS = union_all(
    # Each status has its own partial index.
    *(
        select(literal(status), func.count()).where(Notification.status == status)
        for status in ("pending", "failed", "uncertain")
    )
)
IS_SUMMARY = and_(Notification.order_id.is_(None), Notification.event_name == SUMMARY_NAME)
# A summary is due UNPROVEN_WINDOW after it was made.
DUE_SINCE = Notification.created_at + case((IS_SUMMARY, UNPROVEN_WINDOW), else_=timedelta(0))
AGE_OF_OLDEST_PENDING = select(func.coalesce(func.extract("epoch", func.now() - func.min(DUE_SINCE)), 0)).where(
    Notification.status == "pending",
    # Without summaries that are not due yet.
    or_(Notification.next_try_at <= func.now(), Notification.tries > 0),
)


def find_notification(session: Session, notification_id: int, user_id: int | None, lock: bool = False) -> Notification:
    """user_id: the owner, None for any. Raises NotificationNotFound."""
    wanted = select(Notification).where(
        Notification.id == load_id(notification_id, "notification_id"), *_visible_to(user_id)
    )
    notification = session.scalar(wanted.with_for_update() if lock else wanted)
    if notification is None:
        raise NotificationNotFound(notification_id)
    return notification


def search_notifications(
    session: Session, user_id: int | None, query: Mapping[str, Any]
) -> tuple[int, Iterable[Notification]]:
    """(total, the notifications of the page). query: as contracts.notifications.NotificationQuery."""
    conditions = _visible_to(user_id)
    if query["recipient"] is not None:
        conditions.append(Notification.recipient_email == fold_address(query["recipient"]))
    if query["status"] is not None:
        conditions.append(Notification.status == query["status"])
    if query["order_id"] is not None:
        conditions.append(Notification.order_id == query["order_id"])
    if query["unread"] is not None:
        conditions.append(Notification.read_at.is_(None) == query["unread"])
    if query["after_id"] is not None:
        conditions.append(Notification.id > query["after_id"])
    order = Notification.id.desc() if query["after_id"] is None else Notification.id
    page = select(Notification).where(*conditions).order_by(order)
    page = page.limit(query["limit"]).offset(query["offset"])
    total = session.execute(select(func.count()).select_from(Notification).where(*conditions)).scalar_one()
    return total, session.scalars(page)


def _visible_to(user_id: int | None) -> list[ColumnElement[bool]]:
    """None sees all notifications; customers see their own, without account mails and summaries."""
    if user_id is None:
        return []
    return [Notification.user_id == load_id(user_id, "user_id"), Notification.order_id.is_not(None)]
