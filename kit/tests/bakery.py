"""The example's events and tables."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID, uuid4

from nameko.extensions import DependencyProvider
from sqlalchemy import BigInteger, Identity, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from nameko_reliable.inbox import AnswerMixin, InboxMixin
from nameko_reliable.outbox import OutboxMixin


@dataclass(frozen=True, kw_only=True)
class Event:
    source: ClassVar[str] = "bakery"
    name: ClassVar[str]
    subscribers: ClassVar[tuple[tuple[str, str], ...]] = ()

    event_id: UUID = field(default_factory=uuid4)
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class CakeBaked(Event):
    name = "cake.baked"
    subscribers = (("shop", "display"), ("press", "report"))

    cake: str
    oven: int = 0


@dataclass(frozen=True, kw_only=True)
class CakeEaten(Event):
    name = "cake.eaten"

    cake: str


@dataclass(frozen=True, kw_only=True)
class OvenWarmed(Event):
    """A hint."""

    name = "oven.warmed"

    oven: int
    degrees: int


class Base(DeclarativeBase):
    pass


class OutboxEntry(OutboxMixin, Base):
    pass


class InboxEntry(InboxMixin, Base):
    pass


class Answer(AnswerMixin, Base):
    pass


class Cake(Base):
    __tablename__ = "cakes"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(Text)


class Context(DependencyProvider):
    """The worker's context data."""

    def get_dependency(self, worker_ctx):
        return dict(worker_ctx.data)
