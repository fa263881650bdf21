from cafe_models import Base, InboxEntry, OutboxEntry, Ticket
from events import CakeBaked, CakeOrdered
from nameko_reliable.database import Database
from nameko_reliable.events import event_handler
from nameko_reliable.outbox import Outbox
from nameko_reliable.rpc import ClusterClient, rpc


class Cafe:
    name = "cafe"

    db = Database(Base)
    outbox = Outbox(OutboxEntry, events=[CakeOrdered])
    cluster = ClusterClient()

    @rpc
    def order(self, cake):
        # It takes at most 2 seconds, including all calls that the bakery makes.
        price = self.cluster.within(2).bakery.find_price(cake)
        with self.db.transaction() as session:
            ticket = Ticket(cake=cake, price=price)
            session.add(ticket)
            session.flush()
            # It is published if and only if the transaction commits.
            self.outbox.add(session, CakeOrdered(ticket_id=ticket.id, cake=cake))
        return ticket.id

    @event_handler(CakeBaked)
    def serve(self, event):
        with self.db.transaction() as session:
            # An event may arrive twice. This is true only for the first time.
            if InboxEntry.take(session, event.event_id):
                session.get(Ticket, event.ticket_id).state = "served"

    @rpc
    def find_ticket(self, ticket_id):
        ticket = self.db.session.get(Ticket, ticket_id)
        return {"cake": ticket.cake, "price": ticket.price, "state": ticket.state}
