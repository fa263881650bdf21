"""The tables of notifications, and the states of a mail."""

from dataclasses import dataclass
from datetime import datetime, timedelta
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
    Text,
    UniqueConstraint,
    false,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

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

# Not while the server may have the mail: first it becomes uncertain.
IS_DUE_ORDER_MAIL = "status IN ('pending', 'uncertain') AND dot_at IS NULL AND order_id IS NOT NULL"
IS_DUE_ACCOUNT_MAIL = "status IN ('pending', 'uncertain') AND dot_at IS NULL AND order_id IS NULL"


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
    next_try_at: for a mail that waits for an earlier one of its order, when a claim looks at it again.
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
        # For lists. Its ids are not sorted: PostgreSQL might find an address's open summary by sorted ones, and read
        # all notifications of the address.
        Index("ix_notifications_recipient_email", "recipient_email", postgresql_include=["id"]),
        Index("ix_notifications_summary_id", "summary_id", postgresql_where=text("summary_id IS NOT NULL")),
        # One index for each status that is counted.
        Index("ix_notifications_pending", "id", postgresql_where=text("status = 'pending'")),
        Index("ix_notifications_failed", "id", postgresql_where=text("status = 'failed'")),
        Index("ix_notifications_uncertain", "id", postgresql_where=text("status = 'uncertain'")),
        # Due mails in the order of sending: with a backlog the next mail is the first of the index, and waiting
        # mails are not read.
        Index("ix_notifications_due_order_mails", "next_try_at", postgresql_where=text(IS_DUE_ORDER_MAIL)),
        Index("ix_notifications_due_account_mails", "next_try_at", postgresql_where=text(IS_DUE_ACCOUNT_MAIL)),
        Index("ix_notifications_dot", "leased_until", postgresql_where=text("dot_at IS NOT NULL")),
    )

    def request_retry(self) -> None:
        """Make it the next mail to be sent. Raises NotFailed unless it is failed or uncertain, and not being tried."""
        is_held = self.leased_until is not None
        if self.status not in ("failed", "uncertain") or is_held:
            raise NotFailed(self.id, "pending" if is_held else self.status)
        self.status, self.by_hand, self.lease, self.doubts = "pending", True, None, 0
        self.next_try_at = self.created_at

    @property
    def event_type(self) -> str:
        return EVENT_TYPES[OrderSummary if is_summary(self) else EVENT_CLASSES[self.event_name]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a try changes in the row of its mail.

    status, attempts, doubts: None if they stay. pause: until the next try, None if there is none.
    """

    tries: int
    status: str | None = None
    error_message: str | None = None
    attempts: int | None = None
    doubts: int | None = None
    pause: timedelta | None = None

    @property
    def is_over(self) -> bool:
        """Whether the later mails of its order need not wait for it any more."""
        return self.status is not None


@dataclass(frozen=True)
class ClaimedMail:
    """A mail that a sender holds, as of its claim. The fields are columns of Notification.

    age: since it was stored. Its methods are the outcomes of a try.
    """

    id: int
    event_id: UUID
    event_name: str
    payload: JsonObject
    order_id: int | None
    sequence: int | None
    recipient_email: str
    request_id: str | None
    traceparent: str | None
    status: str
    attempts: int
    tries: int
    doubts: int
    waited: timedelta
    by_hand: bool
    lease: UUID
    age: timedelta

    @property
    def is_waited_for(self) -> bool:
        """Whether the later mails of its order wait for it."""
        return self.order_id is not None and self.status == "pending"

    def sent(self) -> Outcome:
        return self._after_try(status="sent", attempts=self.attempts + 1)

    def refused(self, reason: str) -> Outcome:
        return self._after_try(status="failed", error_message=reason, attempts=self.attempts + 1)

    def postponed(self, reason: str, age: timedelta) -> Outcome:
        """The server may accept the mail later. Each pause is longer. age: since the mail was stored."""
        shortest, longest = POSTPONED_PAUSE_SECONDS
        pause = timedelta(seconds=min(shortest * 2 ** min(self.attempts, 10), longest))
        return self._again_after(pause, age, error_message=reason, attempts=self.attempts + 1)

    def unreachable(self, reason: str, age: timedelta) -> Outcome:
        """The server did not answer about this mail: no attempt is counted, but after a day it has failed."""
        pause = timedelta(seconds=min(2 ** min(self.tries + 1, 10), MAX_UNREACHABLE_PAUSE_SECONDS))
        return self._again_after(pause, age, error_message=reason)

    def uncertain(self, reason: str) -> Outcome:
        """The server may have the mail. A long pause before the next try makes a double mail less likely."""
        doubted: dict[str, Any] = {"error_message": reason, "doubts": self.doubts + 1}
        if self.doubts >= len(UNCERTAIN_PAUSES):
            return self._after_try(status="failed", **doubted)
        return self._after_try(status="uncertain", pause=UNCERTAIN_PAUSES[self.doubts], **doubted)

    def _again_after(self, pause: timedelta, age: timedelta, **changes: Any) -> Outcome:
        # The day counts from the first try: a mail may have waited for the one before it.
        if self.by_hand or (self.tries > 0 and age > GIVE_UP_AFTER + self.waited):
            return self._after_try(status="failed", **changes)
        return self._after_try(pause=pause, **changes)

    def _after_try(self, **changes: Any) -> Outcome:
        return Outcome(tries=self.tries + 1, **changes)


def is_summary(mail: Notification | ClaimedMail) -> bool:
    return mail.order_id is None and mail.event_name == SUMMARY_NAME
