from bakery_models import Base, Cake, InboxEntry, OutboxEntry
from events import CakeBaked, CakeOrdered
from nameko_reliable.database import Database
from nameko_reliable.events import event_handler
from nameko_reliable.outbox import Outbox
from nameko_reliable.parking import parked_messages
from nameko_reliable.rpc import rpc

PRICES = {"Torte": "4.20", "Strudel": "3.50"}


@parked_messages
class Bakery:
    name = "bakery"

    db = Database(Base)
    outbox = Outbox(OutboxEntry, events=[CakeBaked])

    @rpc
    def find_price(self, cake):
        return PRICES.get(cake, "3.00")

    @event_handler(CakeOrdered)
    def bake(self, event):
        with self.db.transaction() as session:
            if InboxEntry.take(session, event.event_id):
                session.add(Cake(name=event.cake))
                self.outbox.add(session, CakeBaked(ticket_id=event.ticket_id))
