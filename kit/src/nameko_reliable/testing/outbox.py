"""The contents of a service's outbox: the events that are committed and not published yet.

    def test_a_cake_and_its_event_are_committed_together(run_service, rpc, outbox):
        run_service(Bakery)

        with outbox(Bakery).held() as pending:
            rpc.bakery.bake("Torte")

            assert [event.cake for event in pending()] == ["Torte"]

After the block the relay publishes them.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import NullPool, create_engine, select, text
from sqlalchemy.orm import Session

from nameko_reliable.messages import from_payload
from nameko_reliable.outbox import RELAY_LOCK, Outbox


class OutboxTable:
    """service_class: a service with one Outbox. uri: of its database."""

    def __init__(self, service_class: type, uri: str) -> None:
        [(_, outbox)] = inspect.getmembers(service_class, lambda member: isinstance(member, Outbox))
        self._model = outbox.model
        self._classes = {event_class.name: event_class for event_class in outbox.events}
        self._engine = create_engine(uri, poolclass=NullPool)

    def pending(self, key: object = None) -> list[Any]:
        """The events in their order. key: only those with this key."""
        rows = select(self._model.event_name, self._model.payload).order_by(self._model.id)
        if key is not None:
            rows = rows.where(self._model.key == str(key))
        with Session(self._engine) as session:
            return [from_payload(self._classes[name], payload) for name, payload in session.execute(rows)]

    @contextmanager
    def held(self) -> Iterator[Callable[..., list[Any]]]:
        """During the block the relay publishes nothing, so events stay pending. The block gets `pending`."""
        with Session(self._engine) as session:
            session.execute(text(f"SELECT pg_advisory_xact_lock({RELAY_LOCK})"))
            yield self.pending
