"""The bakery's tables."""

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from nameko_reliable.tables import InboxMixin, OutboxMixin


class Base(DeclarativeBase):
    pass


class OutboxEntry(OutboxMixin, Base):
    pass


class InboxEntry(InboxMixin, Base):
    pass


class Cake(Base):
    __tablename__ = "cakes"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
