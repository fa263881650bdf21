"""The kit by itself: the services that benchmarks/kit.py measures. `nameko run` starts a class of it."""

from dataclasses import dataclass

from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.peers.closed_loop import repeat_in_greenlets
from nameko_reliable.database import Database
from nameko_reliable.events import event_handler
from nameko_reliable.messages import Event
from nameko_reliable.outbox import Outbox
from nameko_reliable.rpc import ClusterClient, rpc
from nameko_reliable.tables import InboxMixin, OutboxMixin

IN_FLIGHT = 16


class Base(DeclarativeBase):
    pass


class InboxEntry(InboxMixin, Base):
    pass


class OutboxEntry(OutboxMixin, Base):
    pass


class Row(Base):
    __tablename__ = "kit_rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)


@dataclass(frozen=True, kw_only=True)
class Made(Event):
    source = "kit_maker"
    name = "made"
    subscribers = (("kit_worker", "store"),)

    text: str


class Worker:
    name = "kit_worker"

    db = Database(Base)

    @rpc
    def echo(self, message):
        return message

    @event_handler(Made, workers=IN_FLIGHT)
    def store(self, event):
        with self.db.transaction() as session:
            if InboxEntry.take(session, event.event_id):
                session.add(Row(text=event.text))


class Driver:
    name = "kit_driver"

    cluster = ClusterClient()

    @rpc
    def drive(self, message, seconds, at_once):
        return repeat_in_greenlets(lambda: self.cluster.kit_worker.echo(message=message), seconds, at_once)


class Maker:
    name = "kit_maker"

    db = Database(Base)
    outbox = Outbox(OutboxEntry, events=[Made])
