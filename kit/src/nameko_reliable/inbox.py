"""What was handled already: events by their id, calls by theirs.

Both are rows written in the transaction of what they guard, so that the row and the effect are there
together or not at all; of two deliveries at once, the second waits for the first one's commit.
"""

import functools
import inspect
from datetime import datetime
from uuid import UUID

from sqlalchemy import DateTime, Text, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Mapped, mapped_column


class InboxMixin:
    """Events: `class InboxEntry(InboxMixin, Base)`."""

    __tablename__ = "inbox"

    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @classmethod
    def take(cls, session, event_id):
        """True for the first transaction that takes this event, false ever after."""
        taken = session.execute(insert(cls).values(event_id=event_id).on_conflict_do_nothing().returning(cls.event_id))
        return taken.first() is not None


class AnswerMixin:
    """Calls and what they were answered: `class Answer(AnswerMixin, Base)`. See `forget_old`."""

    __tablename__ = "answers"

    call_id: Mapped[str] = mapped_column(Text, primary_key=True)
    answer: Mapped[dict | None] = mapped_column(JSONB)
    answered_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @classmethod
    def once(cls, session, call_id, answer):
        """Return `answer()`, or what the transaction that ran it first for this call returned."""
        claimed = session.execute(insert(cls).values(call_id=call_id).on_conflict_do_nothing().returning(cls.call_id))
        if claimed.first() is None:
            return session.scalar(select(cls.answer).where(cls.call_id == call_id))
        result = answer()
        session.execute(update(cls).where(cls.call_id == call_id).values(answer=result))
        return result

    @classmethod
    def forget_old(cls, session):
        """Delete the answers of more than a day ago: a call is delivered again at once or never."""
        session.execute(delete(cls).where(cls.answered_at < func.now() - text("interval '1 day'")))


def once(method):
    """Run an RPC method in one transaction, and for each call once.

        @rpc
        @once
        def set_stock(self, session, product_id, stock_quantity):
            …

    The session is given to the method; its caller doesn't see that argument. A call that the broker
    delivers again, because a replica died before it acknowledged, gets the first answer again.
    """

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        with self.db.transaction() as session:
            if self.db.call_id is None:
                return method(self, session, *args, **kwargs)
            return self.db.answers.once(session, self.db.call_id, lambda: method(self, session, *args, **kwargs))

    signature = inspect.signature(method)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # `inspect` looks for it
        parameters=[p for name, p in signature.parameters.items() if name != "session"]
    )
    return run
