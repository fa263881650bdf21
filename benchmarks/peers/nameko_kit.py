"""Stock Nameko: an echo, an event that adds one row, and the caller of the echo. `nameko run` starts a class of it."""

from closed_loop import repeat_in_greenlets
from nameko.events import event_handler
from nameko.rpc import RpcProxy, rpc
from nameko_sqlalchemy import Database
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "nameko_rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Worker:
    name = "nameko_worker"

    db = Database(Base)

    @rpc
    def echo(self, message):
        return message

    @event_handler("nameko_maker", "made")
    def store(self, message):
        with self.db.get_session() as session:
            session.add(Row(text=message["text"]))


class Driver:
    name = "nameko_driver"

    worker = RpcProxy("nameko_worker")

    @rpc
    def drive(self, message, seconds, at_once):
        return repeat_in_greenlets(lambda: self.worker.echo(message), seconds, at_once)
