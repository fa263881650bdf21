"""A look into a service's outbox: the events that were committed and have not been published yet.

    def test_a_cake_and_its_event_are_committed_together(run_service, rpc, outbox):
        run_service(Bakery)

        with outbox(Bakery).held() as pending:
            rpc.bakery.bake("Torte")

            assert [event.cake for event in pending()] == ["Torte"]

After the block the relay publishes them.
"""

import inspect
from contextlib import contextmanager

from sqlalchemy import NullPool, create_engine, func, select
from sqlalchemy.orm import Session

from nameko_reliable.messages import from_payload
from nameko_reliable.outbox import RELAY_LOCK, Outbox


class OutboxTable:
    """service_class: of the service, which has one Outbox. uri: of its database."""

    def __init__(self, service_class, uri):
        [(_, outbox)] = inspect.getmembers(service_class, lambda member: isinstance(member, Outbox))
        self._model = outbox.model
        self._classes = {event_class.name: event_class for event_class in outbox.events}
        self._engine = create_engine(uri, poolclass=NullPool)

    def pending(self, key=None):
        """The events in their order; with a key, those of it alone."""
        rows = select(self._model.event_name, self._model.payload).order_by(self._model.id)
        if key is not None:
            rows = rows.where(self._model.key == str(key))
        with Session(self._engine) as session:
            return [from_payload(self._classes[name], payload) for name, payload in session.execute(rows)]

    @contextmanager
    def held(self):
        """In the block the relay publishes nothing, so events stay pending. It gives `pending`."""
        with Session(self._engine) as session:
            session.execute(select(func.pg_advisory_xact_lock(RELAY_LOCK)))
            yield self.pending
