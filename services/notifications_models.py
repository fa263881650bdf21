"""The tables of notifications, and what a mail may become."""

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
    Text,
    UniqueConstraint,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from extensions.inbox import AnswerMixin

LONGEST_AWAY_PAUSE_SECONDS = 30
GIVE_UP_AFTER = timedelta(hours=24)
MAX_ATTEMPTS = 5
FIRST_POSTPONED_PAUSE_SECONDS = 30


class Base(DeclarativeBase):
    pass


class Answer(AnswerMixin, Base):
    pass


class Notification(Base):
    """pending → sent or failed; failed → sent by a retry. One that is not needed any more is deleted.

    event_id is the inbox: an event is stored once. sequence: its place among its order's mails.
    order_id and sequence are null for account mails, whose link carries a token: nothing here does.
    request_id, traceparent: of the request that the event came of, for what is logged and traced of the mail.
    attempts: answers of the mail server about this mail. tries: all tries, also those nobody answered.
    """

    __tablename__ = "notifications"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    event_id: Mapped[UUID] = mapped_column(unique=True)
    event_name: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict] = mapped_column(JSONB)
    order_id: Mapped[int | None] = mapped_column(BigInteger)
    sequence: Mapped[int | None] = mapped_column(Integer)
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

    __table_args__ = (
        CheckConstraint("status IN ('pending', 'sent', 'failed')", name="ck_notifications_status"),
        UniqueConstraint("order_id", "sequence", name="uq_notifications_order_id_sequence"),
        Index("ix_notifications_user_id_id", "user_id", "id"),
        # By id, the order in which they are sent: with a backlog, the next one is the first of the index.
        Index("ix_notifications_pending", "id", postgresql_where=text("status = 'pending'")),
        Index("ix_notifications_failed", "id", postgresql_where=text("status = 'failed'")),
    )

    def accepted(self):
        self.status, self.error_message = "sent", None
        self.attempts += 1
        self.tries += 1

    def refused(self, reason):
        self.status, self.error_message = "failed", reason
        self.attempts += 1
        self.tries += 1

    def postponed(self, reason):
        """The server may take this mail later: wait longer each time, and give up with the last attempt."""
        self.error_message = reason
        self.attempts += 1
        self.tries += 1
        if self.attempts >= MAX_ATTEMPTS:
            self.status = "failed"
        self._wait(FIRST_POSTPONED_PAUSE_SECONDS * 4 ** (self.attempts - 1))

    def unanswered(self, reason, now):
        """Nobody spoke about this mail: that is no attempt, but a day of it is enough."""
        self.error_message = reason
        self.tries += 1
        if now - self.created_at > GIVE_UP_AFTER:
            self.status = "failed"
        self._wait(min(2**self.tries, LONGEST_AWAY_PAUSE_SECONDS))

    def _wait(self, seconds):
        self.next_try_at = func.now() + timedelta(seconds=seconds)

    @classmethod
    @cache
    def due(cls):
        """Those to send now, oldest first: of each order the next in sequence alone, every account mail.

        After a day a mail goes without the one before it, which was parked or never came.
        """
        other = aliased(cls)
        of_same_order = select(other.id).where(other.order_id == cls.order_id)
        earlier_one_waits = of_same_order.where(other.sequence < cls.sequence, other.status == "pending").exists()
        one_before_came = of_same_order.where(other.sequence == cls.sequence - 1).exists()
        overdue = cls.created_at < func.now() - GIVE_UP_AFTER
        in_turn = or_(cls.sequence.is_(None), cls.sequence == 1, one_before_came, overdue)
        due = select(cls).where(cls.status == "pending", cls.next_try_at <= func.now(), ~earlier_one_waits, in_turn)
        return due.order_by(cls.id)
