"""The example's events and tables."""

from dataclasses import dataclass

from nameko.extensions import DependencyProvider
from sqlalchemy import BigInteger, Identity, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from nameko_reliable.messages import Event
from nameko_reliable.tables import AnswerMixin, InboxMixin, OutboxMixin


@dataclass(frozen=True, kw_only=True)
class BakeryEvent(Event):
    source = "bakery"


@dataclass(frozen=True, kw_only=True)
class CakeBaked(BakeryEvent):
    name = "cake.baked"
    subscribers = (("cafe", "display"), ("press", "report"))

    cake: str
    oven: int = 0


@dataclass(frozen=True, kw_only=True)
class CakeEaten(BakeryEvent):
    name = "cake.eaten"

    cake: str


@dataclass(frozen=True, kw_only=True)
class CakeSold(BakeryEvent):
    name = "cake.sold"
    retired_subscribers = (("cafe", "count"),)

    cake: str


@dataclass(frozen=True, kw_only=True)
class OvenWarmed(BakeryEvent):
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
