"""The cafe's tables."""

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from nameko_reliable.tables import InboxMixin, OutboxMixin


class Base(DeclarativeBase):
    pass


class OutboxEntry(OutboxMixin, Base):
    pass


class InboxEntry(InboxMixin, Base):
    pass


class Ticket(Base):
    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(primary_key=True)
    cake: Mapped[str]
    price: Mapped[str]
    state: Mapped[str] = mapped_column(default="ordered")
