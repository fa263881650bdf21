"""The kit's tables, as mixins for a service's own models.

    class OutboxEntry(OutboxMixin, Base):
        pass

    class InboxEntry(InboxMixin, Base):
        pass

    class Answer(AnswerMixin, Base):
        pass

The tables are named `outbox`, `inbox` and `answers`.
"""

from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Identity, Index, Text, delete, func, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, declared_attr, mapped_column

from nameko_reliable.messages import Event, to_payload
from nameko_reliable.statements import Statement, run

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def table_name(model: Any) -> str:
    """The name of a model's table for statements in SQL, quoted if that is needed."""
    return DIALECT.identifier_preparer.format_table(model.__table__)


@cache
def _insert_new(model: Any, key: str) -> Statement:
    """Inserts a row with that primary key, and returns it unless it was there.

    SQLAlchemy itself would compile an insert with `on_conflict_do_nothing` at every call.
    """
    key_type = model.__table__.c[key].type
    return Statement(
        f"INSERT INTO {table_name(model)} ({key}) VALUES (%({key})s::{key_type.compile(DIALECT)}) "  # noqa: S608
        f"ON CONFLICT DO NOTHING RETURNING {key}"
    )


class OutboxMixin:
    """The events that the relay has still to publish."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    event_id: Mapped[UUID]
    event_name: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    request_id: Mapped[str | None] = mapped_column(Text)
    traceparent: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    not_before: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Index, ...]:
        return (Index("ix_outbox_key_id", "key", "id"),)

    @classmethod
    def of(
        cls: Any, event: Event, key: object = None, *, request_id: str | None = None, traceparent: str | None = None
    ) -> Any:
        """A row for the event."""
        return cls(
            event_id=event.event_id,
            event_name=event.name,
            key=str(event.event_id if key is None else key),
            payload=to_payload(event),
            request_id=request_id,
            traceparent=traceparent,
        )


class InboxMixin:
    """The events that the service has handled."""

    __tablename__ = "inbox"

    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @classmethod
    def take(cls: Any, session: Session, event_id: UUID) -> bool:
        """True for the first transaction that takes this event, False for every later one."""
        return bool(run(session, _insert_new(cls, "event_id"), event_id=str(event_id)))


class AnswerMixin:
    """Calls and their answers. Call `forget_old` from a timer, or the table grows without end."""

    __tablename__ = "answers"

    call_id: Mapped[str] = mapped_column(Text, primary_key=True)
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    answered_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @classmethod
    def once(cls: Any, session: Session, call_id: str, answer: Callable[[], Any]) -> Any:
        """Return `answer()`. A call that is delivered again gets the first answer, without running `answer` again."""
        if not run(session, _insert_new(cls, "call_id"), call_id=call_id):
            return session.scalar(select(cls.answer).where(cls.call_id == call_id))
        result = answer()
        table = cls.__table__
        session.execute(update(table).where(table.c.call_id == call_id).values(answer=result))
        return result

    @classmethod
    def forget_old(cls, session: Session) -> None:
        """Delete the answers that are older than a day. The broker delivers a call again at once or never."""
        session.execute(delete(cls).where(cls.answered_at < func.now() - text("interval '1 day'")))
