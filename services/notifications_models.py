"""The tables of notifications, and the states of a mail."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Identity,
    Index,
    Integer,
    Interval,
    Text,
    UniqueConstraint,
    false,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from contracts.notifications import NotFailed
from contracts.orders import OrderCreated, OrderEvent, OrderStatusUpdated
from contracts.users import UserPasswordResetRequested, UserRegistered, UserVerificationRequested
from nameko_reliable.messages import Event
from nameko_reliable.tables import AnswerMixin

# An address that was never proven gets at most this many order mails in this time. Further ones are summed up in one
# mail, which is sent UNPROVEN_WINDOW after the first that it sums up.
UNPROVEN_MAILS, UNPROVEN_WINDOW = 6, timedelta(hours=1)
MAX_ORDERS_LISTED = 20
# With no order_id. 0.1.0, which may run beside this release, knows summaries by this name.
SUMMARY_NAME = OrderStatusUpdated.name
MAX_UNREACHABLE_PAUSE_SECONDS = 30
POSTPONED_PAUSE_SECONDS = (60, 3600)
# After each time that a mail became uncertain; one more time, and it has failed.
UNCERTAIN_PAUSES = (timedelta(minutes=15), timedelta(hours=1))
GIVE_UP_AFTER = timedelta(hours=24)

# Not while the server may have it: first the mail becomes uncertain.
IS_DUE_ORDER_MAIL = text("status IN ('pending', 'uncertain') AND dot_at IS NULL AND order_id IS NOT NULL")
IS_DUE_ACCOUNT_MAIL = text("status IN ('pending', 'uncertain') AND dot_at IS NULL AND order_id IS NULL")
# Held by no claim, and not with the server.
UNCLAIMED = {"leased_until": None, "dot_at": None}


class Base(DeclarativeBase):
    pass


class Answer(AnswerMixin, Base):
    pass


@dataclass(frozen=True, kw_only=True)
class OrderSummary(Event):
    """The content of one mail about many order events. It is not published: notifications makes it for itself.

    orders: the last event of each order, filled in when the mail is sent; the newest of `total` orders.
    """

    name = "order.summary"

    user_id: int
    user_email: str
    orders: tuple[OrderEvent, ...] = ()
    total: int = 0


EVENT_TYPES = {
    OrderCreated: "order_confirmation",
    OrderStatusUpdated: "order_status_update",
    UserRegistered: "email_verification",
    UserVerificationRequested: "email_verification",
    UserPasswordResetRequested: "password_reset",
    OrderSummary: "order_summary",
}
EVENT_CLASSES = {event_class.name: event_class for event_class in EVENT_TYPES}


def lock_address(session, email):
    """One at a time counts the order mails to this address, or reads the orders of its summary."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"order mails to {email}"))))


class Notification(Base):
    """pending → sent, failed or uncertain; uncertain → sent or failed; failed or uncertain → pending by a retry.

    One that is not needed any more is deleted. uncertain: the mail server may have it, and its answer never came.

    event_id is the inbox: an event is stored once. sequence: its number among its order's mails.
    order_id and sequence are null for account mails, whose link carries a token: nothing here does. They are null
    for summaries, too, whose event_name is SUMMARY_NAME.
    summary_id: of the summary that sums it up. It is not mailed by itself then, and counts as sent.
    request_id, traceparent: of the request that caused the event, for the mail's logs and traces.
    attempts: answers of the mail server about this mail. tries: all tries, also those without an answer.
    waited: from its storing to its first try. by_hand: the next try, or the one under way, is a retry that
    a customer or an admin asked for.
    lease: the claim that held it last. leased_until: it holds it still, until then. Before the dot next_try_at is no
    sooner than that, so that others, who claim what is due, leave it alone.
    dot_at: since then the mail server may have it; null again once it has answered.
    doubts: how many times the mail became uncertain.
    """

    __tablename__ = "notifications"

    type = "email"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    event_id: Mapped[UUID] = mapped_column(unique=True)
    event_name: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict] = mapped_column(JSONB)
    order_id: Mapped[int | None] = mapped_column(BigInteger)
    sequence: Mapped[int | None] = mapped_column(Integer)
    # No foreign key: to check one locks the summary, which its sender may hold.
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
        # Those that were mailed by themselves: few, however many more there were about.
        Index(
            "ix_notifications_recipient_email_created_at",
            "recipient_email",
            "created_at",
            postgresql_where=text("summary_id IS NULL"),
        ),
        Index("ix_notifications_summary_id", "summary_id", postgresql_where=text("summary_id IS NOT NULL")),
        # One for each status that is counted.
        Index("ix_notifications_pending", "id", postgresql_where=text("status = 'pending'")),
        Index("ix_notifications_failed", "id", postgresql_where=text("status = 'failed'")),
        Index("ix_notifications_uncertain", "id", postgresql_where=text("status = 'uncertain'")),
        # Due mails in the order in which they are sent: with a backlog, the next one is the first of the index, and
        # mails that have to wait are not read.
        Index("ix_notifications_due_order_mails", "next_try_at", postgresql_where=IS_DUE_ORDER_MAIL),
        Index("ix_notifications_due_account_mails", "next_try_at", postgresql_where=IS_DUE_ACCOUNT_MAIL),
        Index("ix_notifications_dot", "leased_until", postgresql_where=text("dot_at IS NOT NULL")),
    )

    def request_retry(self):
        """Make it the next to be sent. Raises NotFailed unless it is failed or uncertain, and not being tried."""
        is_held = self.leased_until is not None
        if self.status not in ("failed", "uncertain") or is_held:
            raise NotFailed(self.id, "pending" if is_held else self.status)
        self.status, self.by_hand, self.lease, self.doubts = "pending", True, None, 0
        self.next_try_at = self.created_at

    # The outcomes of a try, as the columns that change.

    def sent(self):
        return self._after_try(attempts=self.attempts + 1, status="sent", error_message=None, lease=None)

    def refused(self, reason):
        return self._after_try(attempts=self.attempts + 1, status="failed", error_message=reason)

    def postponed(self, reason, age):
        """The server may take this mail later: wait longer each time. age: since it was stored."""
        shortest, longest = POSTPONED_PAUSE_SECONDS
        pause = timedelta(seconds=min(shortest * 2 ** min(self.attempts, 10), longest))
        return self._after_try(attempts=self.attempts + 1, error_message=reason) | self._retry_after(pause, age)

    def unreachable(self, reason, age):
        """The server said nothing about this mail: that is no attempt, but after a day it has failed."""
        pause = timedelta(seconds=min(2 ** min(self.tries + 1, 10), MAX_UNREACHABLE_PAUSE_SECONDS))
        return self._after_try(error_message=reason) | self._retry_after(pause, age)

    def uncertain(self, reason):
        """The server may have it: an early try could send it twice."""
        changes = self._after_try(doubts=self.doubts + 1, error_message=reason)
        if self.doubts >= len(UNCERTAIN_PAUSES):
            return changes | {"status": "failed"}
        return changes | {"status": "uncertain", "next_try_at": func.now() + UNCERTAIN_PAUSES[self.doubts]}

    def _after_try(self, **changes):
        waited = func.now() - Notification.created_at if self.tries == 0 else Notification.waited
        return UNCLAIMED | {"tries": self.tries + 1, "waited": waited, "by_hand": False} | changes

    def _retry_after(self, pause, age):
        # The day of a mail that had to wait for its turn begins at its first try.
        if self.by_hand or (self.tries > 0 and age > GIVE_UP_AFTER + self.waited):
            return {"status": "failed"}
        return {"next_try_at": func.now() + pause}

    @property
    def event_type(self):
        return EVENT_TYPES[OrderSummary if self.is_summary else EVENT_CLASSES[self.event_name]]

    @property
    def is_summary(self):
        return self.order_id is None and self.event_name == SUMMARY_NAME

    def join_summary(self, summary_id):
        """Leave it to the summary, which is mailed in its place."""
        self.status, self.error_message, self.summary_id = "sent", f"summed up in {summary_id}", summary_id

    def exceeds_limit(self, session):
        """Whether the address, which was never proven, has had its share of order mails. The address is locked."""
        lately = Notification.created_at > func.clock_timestamp() - UNPROVEN_WINDOW
        others = select(func.count()).where(
            Notification.recipient_email == self.recipient_email,
            Notification.order_id.is_not(None),
            Notification.summary_id.is_(None),
            Notification.id != self.id,
            # A pending mail of yesterday is still to be sent.
            or_(lately, Notification.status == "pending"),
        )
        return session.scalar(others) >= UNPROVEN_MAILS

    def orders_summed_up(self, session):
        """Of a summary: (the last notification of each order, newest orders first, and the number of orders).

        The address is locked. At most MAX_ORDERS_LISTED notifications.
        """
        orders = select(Notification.order_id).where(Notification.summary_id == self.id)
        last = select(Notification).where(Notification.order_id.in_(orders)).distinct(Notification.order_id)
        last = last.order_by(Notification.order_id.desc(), Notification.sequence.desc()).limit(MAX_ORDERS_LISTED)
        total = session.scalar(select(func.count()).select_from(orders.distinct().subquery()))
        return session.scalars(last).all(), total

    @classmethod
    def open_summary(cls, session, recipient_email):
        """The id of the address's summary that others can join, None without one. The address is locked.

        Not one that is due: it may be on its way. Its sender locks the address before it reads the orders.
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
    def due_order_mails(cls):
        """The mails to send now, the longest due first: of each order the next in sequence alone.

        After a day a mail goes without the one before it, which was parked or never came.
        """
        other = aliased(cls)
        # A subquery of the order's own mails for each: for EXISTS, PostgreSQL may hash the whole table.
        of_same_order = select(other.id).where(other.order_id == cls.order_id).limit(1)
        pending_before = of_same_order.where(other.sequence < cls.sequence, other.status == "pending").scalar_subquery()
        is_predecessor_known = of_same_order.where(other.sequence == cls.sequence - 1).scalar_subquery()
        overdue = cls.created_at < func.now() - GIVE_UP_AFTER
        in_turn = or_(cls.sequence == 1, is_predecessor_known.is_not(None), overdue)
        return cls._due(IS_DUE_ORDER_MAIL).where(pending_before.is_(None), in_turn)

    @classmethod
    @cache
    def due_account_mails(cls):
        """The mails to send now, the longest due first."""
        return cls._due(IS_DUE_ACCOUNT_MAIL)

    @classmethod
    def _due(cls, condition):
        return select(cls.id).where(condition, cls.next_try_at <= func.now()).order_by(cls.next_try_at)
