"""The tables of notifications, and the states of a mail."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Identity,
    Index,
    Integer,
    Interval,
    Select,
    Text,
    TextClause,
    UniqueConstraint,
    false,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from contracts.notifications import NotFailed
from contracts.orders import OrderCreated, OrderEvent, OrderStatusUpdated
from contracts.types import JsonObject
from contracts.users import UserPasswordResetRequested, UserRegistered, UserVerificationRequested
from nameko_reliable.messages import Event
from nameko_reliable.tables import AnswerMixin

# An address that was never proven gets at most UNPROVEN_MAILS order mails in UNPROVEN_WINDOW. A summary of further ones
# is mailed UNPROVEN_WINDOW after the first of them.
UNPROVEN_MAILS, UNPROVEN_WINDOW = 6, timedelta(hours=1)
MAX_ORDERS_LISTED = 20
# A summary has this event_name and no order_id: 0.1.0, which may run beside this release, knows it by both.
SUMMARY_NAME = OrderStatusUpdated.name
MAX_UNREACHABLE_PAUSE_SECONDS = 30
POSTPONED_PAUSE_SECONDS = (60, 3600)
# The pause after the first and the second time that a mail became uncertain. The third time it has failed.
UNCERTAIN_PAUSES = (timedelta(minutes=15), timedelta(hours=1))
GIVE_UP_AFTER = timedelta(hours=24)

# New values by column: values or SQL expressions.
Changes = dict[str, Any]
# Not while the server may have the mail: first it becomes uncertain.
IS_DUE_ORDER_MAIL = text("status IN ('pending', 'uncertain') AND dot_at IS NULL AND order_id IS NOT NULL")
IS_DUE_ACCOUNT_MAIL = text("status IN ('pending', 'uncertain') AND dot_at IS NULL AND order_id IS NULL")
# The columns of a mail that no sender holds.
UNCLAIMED: Changes = {"leased_until": None, "dot_at": None}


class Base(DeclarativeBase):
    pass


class Answer(AnswerMixin, Base):
    pass


@dataclass(frozen=True, kw_only=True)
class OrderSummary(Event):
    """The content of one mail about many order events. It is never published.

    orders: the last event of each order, at most MAX_ORDERS_LISTED of `total`, the newest first. They are read when the
    mail is sent.
    """

    name = "order.summary"

    user_id: int
    user_email: str
    orders: tuple[OrderEvent, ...] = ()
    total: int = 0


EVENT_TYPES: dict[type[Event], str] = {
    OrderCreated: "order_confirmation",
    OrderStatusUpdated: "order_status_update",
    UserRegistered: "email_verification",
    UserVerificationRequested: "email_verification",
    UserPasswordResetRequested: "password_reset",
    OrderSummary: "order_summary",
}
EVENT_CLASSES: dict[str, Any] = {event_class.name: event_class for event_class in EVENT_TYPES}


def lock_address(session: Session, email: str) -> None:
    """Lock the address: one transaction at a time counts its order mails, or reads the orders of its summary."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"order mails to {email}"))))


class Notification(Base):
    """pending → sent, failed or uncertain; uncertain → sent or failed; failed or uncertain → pending by a retry.

    uncertain: the mail server may have the mail, but did not answer. A mail that is no longer needed is deleted.

    event_id is the inbox: an event is stored once. sequence: the mail's number among those of its order.
    order_id and sequence are null for account mails and for summaries, whose event_name is SUMMARY_NAME. The token in
    the link of an account mail is not stored.
    summary_id: the summary that the mail was left to. It is not mailed itself, and its status is sent.
    request_id, traceparent: of the request that caused the event, for the mail's logs and traces.
    attempts: answers of the mail server about this mail. tries: all tries, also those without an answer.
    waited: the time from storing to the first try. by_hand: the next or the present try is a retry that a customer or
    an admin requested.
    lease: the claim that held it last. leased_until: the end of a claim that still holds it. Before the dot next_try_at
    is no earlier than that, so that other senders do not claim it.
    dot_at: the mail server may have the mail since then. Null again once it has answered.
    doubts: how many times the mail became uncertain.
    """

    __tablename__ = "notifications"

    type = "email"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    event_id: Mapped[UUID] = mapped_column(unique=True)
    event_name: Mapped[str] = mapped_column(Text)
    payload: Mapped[JsonObject] = mapped_column(JSONB)
    order_id: Mapped[int | None] = mapped_column(BigInteger)
    sequence: Mapped[int | None] = mapped_column(Integer)
    # No foreign key: its check would lock the summary, which its sender may hold.
    summary_id: Mapped[int | None] = mapped_column(BigInteger)
    user_id: Mapped[int] = mapped_column(BigInteger)
    recipient_email: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    message: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    traceparent: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, server_default="pending")
    error_message: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    next_try_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    read_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    waited: Mapped[timedelta] = mapped_column(Interval, server_default=text("'0'"))
    by_hand: Mapped[bool] = mapped_column(server_default=false())
    lease: Mapped[UUID | None]
    leased_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    dot_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    doubts: Mapped[int] = mapped_column(Integer, server_default="0")

    __table_args__ = (
        CheckConstraint("status IN ('pending', 'sent', 'failed', 'uncertain')", name="ck_notifications_status"),
        UniqueConstraint("order_id", "sequence", name="uq_notifications_order_id_sequence"),
        Index("ix_notifications_user_id_id", "user_id", "id"),
        # Only mails that were not left to a summary: few for each address, however many events there were.
        Index(
            "ix_notifications_recipient_email_created_at",
            "recipient_email",
            "created_at",
            postgresql_where=text("summary_id IS NULL"),
        ),
        Index("ix_notifications_summary_id", "summary_id", postgresql_where=text("summary_id IS NOT NULL")),
        # One index for each status that is counted.
        Index("ix_notifications_pending", "id", postgresql_where=text("status = 'pending'")),
        Index("ix_notifications_failed", "id", postgresql_where=text("status = 'failed'")),
        Index("ix_notifications_uncertain", "id", postgresql_where=text("status = 'uncertain'")),
        # Due mails in the order of sending: with a backlog the next mail is the first of the index, and waiting
        # mails are not read.
        Index("ix_notifications_due_order_mails", "next_try_at", postgresql_where=IS_DUE_ORDER_MAIL),
        Index("ix_notifications_due_account_mails", "next_try_at", postgresql_where=IS_DUE_ACCOUNT_MAIL),
        Index("ix_notifications_dot", "leased_until", postgresql_where=text("dot_at IS NOT NULL")),
    )

    def request_retry(self) -> None:
        """Make it the next mail to be sent. Raises NotFailed unless it is failed or uncertain, and not being tried."""
        is_held = self.leased_until is not None
        if self.status not in ("failed", "uncertain") or is_held:
            raise NotFailed(self.id, "pending" if is_held else self.status)
        self.status, self.by_hand, self.lease, self.doubts = "pending", True, None, 0
        self.next_try_at = self.created_at

    # The outcomes of a try: the changes of the columns.

    def sent(self) -> Changes:
        return self._after_try(attempts=self.attempts + 1, status="sent", error_message=None, lease=None)

    def refused(self, reason: str) -> Changes:
        return self._after_try(attempts=self.attempts + 1, status="failed", error_message=reason)

    def postponed(self, reason: str, age: timedelta) -> Changes:
        """The server may accept the mail later. Each pause is longer. age: since the mail was stored."""
        shortest, longest = POSTPONED_PAUSE_SECONDS
        pause = timedelta(seconds=min(shortest * 2 ** min(self.attempts, 10), longest))
        return self._after_try(attempts=self.attempts + 1, error_message=reason) | self._retry_after(pause, age)

    def unreachable(self, reason: str, age: timedelta) -> Changes:
        """The server did not answer about this mail: no attempt is counted, but after a day it has failed."""
        pause = timedelta(seconds=min(2 ** min(self.tries + 1, 10), MAX_UNREACHABLE_PAUSE_SECONDS))
        return self._after_try(error_message=reason) | self._retry_after(pause, age)

    def uncertain(self, reason: str) -> Changes:
        """The server may have the mail. A long pause before the next try makes a double mail less likely."""
        changes = self._after_try(doubts=self.doubts + 1, error_message=reason)
        if self.doubts >= len(UNCERTAIN_PAUSES):
            return changes | {"status": "failed"}
        return changes | {"status": "uncertain", "next_try_at": func.now() + UNCERTAIN_PAUSES[self.doubts]}

    def _after_try(self, **changes: Any) -> Changes:
        waited = func.now() - Notification.created_at if self.tries == 0 else Notification.waited
        return UNCLAIMED | {"tries": self.tries + 1, "waited": waited, "by_hand": False} | changes

    def _retry_after(self, pause: timedelta, age: timedelta) -> Changes:
        # The day counts from the first try: a mail may have waited for the one before it.
        if self.by_hand or (self.tries > 0 and age > GIVE_UP_AFTER + self.waited):
            return {"status": "failed"}
        return {"next_try_at": func.now() + pause}

    @property
    def event_type(self) -> str:
        return EVENT_TYPES[OrderSummary if self.is_summary else EVENT_CLASSES[self.event_name]]

    @property
    def is_summary(self) -> bool:
        return self.order_id is None and self.event_name == SUMMARY_NAME

    def join_summary(self, summary_id: int) -> None:
        """Leave it to the summary, which is mailed instead."""
        self.status, self.error_message, self.summary_id = "sent", f"summed up in {summary_id}", summary_id

    def exceeds_limit(self, session: Session) -> bool:
        """Whether its address, which was never proven, has reached UNPROVEN_MAILS. The address is locked."""
        lately = Notification.created_at > func.clock_timestamp() - UNPROVEN_WINDOW
        others = select(func.count()).where(
            Notification.recipient_email == self.recipient_email,
            Notification.order_id.is_not(None),
            Notification.summary_id.is_(None),
            Notification.id != self.id,
            # An older pending mail still has to be sent.
            or_(lately, Notification.status == "pending"),
        )
        return session.execute(others).scalar_one() >= UNPROVEN_MAILS

    def orders_summed_up(self, session: Session) -> tuple[Sequence["Notification"], int]:
        """Of a summary: the last notification of each order, newest orders first, and the number of orders.

        At most MAX_ORDERS_LISTED notifications. The address is locked.
        """
        orders = select(Notification.order_id).where(Notification.summary_id == self.id)
        last = select(Notification).where(Notification.order_id.in_(orders)).distinct(Notification.order_id)
        last = last.order_by(Notification.order_id.desc(), Notification.sequence.desc()).limit(MAX_ORDERS_LISTED)
        total = session.execute(select(func.count()).select_from(orders.distinct().subquery())).scalar_one()
        return session.scalars(last).all(), total

    @classmethod
    def open_summary(cls, session: Session, recipient_email: str) -> int | None:
        """The id of the address's summary that is not due yet, or None. The address is locked.

        A due summary may be being sent. Its sender locks the address before it reads the orders.
        """
        summary = select(func.max(cls.id)).where(
            cls.recipient_email == recipient_email,
            cls.summary_id.is_(None),
            cls.order_id.is_(None),
            cls.event_name == SUMMARY_NAME,
            cls.status == "pending",
            cls.next_try_at > func.clock_timestamp(),
            cls.leased_until.is_(None),
        )
        return session.scalar(summary)

    @classmethod
    @cache
    def due_order_mails(cls) -> Select[tuple[int]]:
        """The ids of the mails to send now, the longest due first. Of each order only the next in sequence.

        After a day a mail is sent without the one before it, which was parked or never came.
        """
        other = aliased(cls)
        # Scalar subqueries of the order's own mails: for EXISTS, PostgreSQL may hash the whole table.
        of_same_order = select(other.id).where(other.order_id == cls.order_id).limit(1)
        pending_before = of_same_order.where(other.sequence < cls.sequence, other.status == "pending").scalar_subquery()
        predecessor = of_same_order.where(other.sequence == cls.sequence - 1).scalar_subquery()
        overdue = cls.created_at < func.now() - GIVE_UP_AFTER
        in_turn = or_(cls.sequence == 1, predecessor.is_not(None), overdue)
        return cls._due(IS_DUE_ORDER_MAIL).where(pending_before.is_(None), in_turn)

    @classmethod
    @cache
    def due_account_mails(cls) -> Select[tuple[int]]:
        """The ids of the mails to send now, the longest due first."""
        return cls._due(IS_DUE_ACCOUNT_MAIL)

    @classmethod
    def _due(cls, condition: TextClause) -> Select[tuple[int]]:
        return select(cls.id).where(condition, cls.next_try_at <= func.now()).order_by(cls.next_try_at)
