"""products: the catalogue, the stock and its reservations.

Owns:     products_db
RPC:      list_products, list_categories, get_product, create_product, replace_product, update_product,
          set_stock, delete_product, summarize_stock, check_stock, reserve_stock, release_stock,
          list_parked, count_parked, replay_parked, discard_parked, replay_all_parked, discard_all_parked,
          health
Emits:    product.changed (a hint)
Handles:  order.created, order.status.updated, order.abandoned
"""

import logging
from contextlib import contextmanager

from prometheus_client import Gauge
from sqlalchemy import collate, func, select, text
from sqlalchemy.exc import IntegrityError

from contracts.names import normal_text
from contracts.orders import OrderAbandoned, OrderCreated, OrderStatusUpdated
from contracts.production import demo_settings
from contracts.products import (
    InsufficientStock,
    PriceChanged,
    ProductChanged,
    ProductChanges,
    ProductNotFound,
    ProductQuery,
    ProductRecord,
    ProductReplacement,
    ProductRequest,
    ProductView,
    ReservationId,
    ReservationReleased,
    ReservationRequest,
    SkuTaken,
    StaleVersion,
    StockChange,
    StockLines,
)
from contracts.settings import ShopSettings
from contracts.types import (
    MAX_INT,
    InvalidInput,
    ParkedMessageNotFound,
    ParkedQuery,
    ParkedSelection,
    Taken,
    load,
    load_id,
)
from nameko_reliable.database import Database
from nameko_reliable.errors import RpcTimeout, ServiceUnavailable
from nameko_reliable.events import event_handler
from nameko_reliable.hints import Hints
from nameko_reliable.inbox import once
from nameko_reliable.parking import ParkingLot
from nameko_reliable.polling import poll
from nameko_reliable.rpc import ClusterClient, rpc
from nameko_reliable.settings import Settings
from nameko_reliable.telemetry.gauges import QueryGauge
from nameko_reliable.telemetry.logs import LogContext
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.telemetry.tracing import Tracing
from nameko_reliable.timers import timer
from services.products_models import (
    NAME_COLLATION,
    Answer,
    InboxEntry,
    Product,
    Reservation,
    ReservationLine,
    StockMovement,
)
from services.products_search import conditions

logger = logging.getLogger(__name__)

PRODUCT_VIEW, PRODUCT_RECORD = ProductView(), ProductRecord()
HINT_SECONDS = 0.25
SETTLE_BATCH = 100
# Few: no call is answered while the pieces of a batch are made.
INDEX_BATCH = 20
LOW_STOCK = 5
LOW_STOCK_SHOWN = 10

STOCK_MISMATCHES = Gauge("forage_stock_mismatches", "Products whose stock is not the sum of their ledger.", ["service"])
# Of the whole ledger: asked seldom.
COUNT_MISMATCHES = text("""
SELECT count(*) FROM products p
LEFT JOIN (SELECT product_id, sum(delta) AS stock FROM stock_movements GROUP BY product_id) m ON m.product_id = p.id
WHERE p.stock_quantity <> coalesce(m.stock, 0)
""")
MISMATCHES_INTERVAL_SECONDS = 300

# For a word that many products have, the planner takes the whole table: to read the pieces of each row costs more than
# it knows (of 100,000 rows 0.5 s, against 0.1 s).
BY_INDEX = text("SET LOCAL enable_seqscan = off")

# Only who inserts the reservation goes on. A line that is short is left as it is: the caller sees it
# in the answer and rolls everything back.
RESERVE = text("""
WITH claim AS (
    INSERT INTO reservations (id, state) VALUES (:reservation_id, 'open')
    ON CONFLICT (id) DO NOTHING RETURNING id
), wanted AS (
    SELECT * FROM unnest(CAST(:product_ids AS bigint[]), CAST(:quantities AS integer[])) AS w (product_id, quantity)
), locked AS MATERIALIZED (
    -- By id, so two carts cannot deadlock.
    SELECT id, name, price, stock_quantity, is_active, revision FROM products
    WHERE id = ANY (CAST(:product_ids AS bigint[])) AND EXISTS (SELECT FROM claim)
    ORDER BY id FOR UPDATE
), sold AS (
    -- From the locked row: p is as it was when the statement began, and the table's check is made on that first.
    UPDATE products p SET stock_quantity = l.stock_quantity - w.quantity, revision = l.revision + 1
    FROM locked l JOIN wanted w ON w.product_id = l.id
    WHERE p.id = l.id AND l.is_active AND l.stock_quantity >= w.quantity
    RETURNING p.id, p.stock_quantity, p.revision
), kept AS (
    INSERT INTO reservation_lines (reservation_id, product_id, quantity, product_name, product_price)
    SELECT :reservation_id, l.id, w.quantity, l.name, l.price FROM locked l JOIN wanted w ON w.product_id = l.id
), moved AS (
    INSERT INTO stock_movements (product_id, delta, reason, reservation_id)
    SELECT s.id, -w.quantity, 'reservation', :reservation_id FROM sold s JOIN wanted w ON w.product_id = s.id
)
SELECT w.product_id AS id, w.quantity, l.name, l.price, l.is_active, l.stock_quantity AS available,
       s.stock_quantity, s.revision, EXISTS (SELECT FROM claim) AS claimed
FROM wanted w LEFT JOIN locked l ON l.id = w.product_id LEFT JOIN sold s ON s.id = w.product_id
ORDER BY w.product_id
""")

RELEASE = text("""
WITH released AS (
    UPDATE reservations SET state = 'released' WHERE id = :reservation_id AND state = ANY (:states) RETURNING id
), line AS (
    SELECT product_id, quantity FROM reservation_lines WHERE reservation_id IN (SELECT id FROM released)
), locked AS MATERIALIZED (
    -- By id, so a release cannot deadlock with a reservation.
    SELECT id FROM products WHERE id IN (SELECT product_id FROM line) ORDER BY id FOR UPDATE
), returned AS (
    UPDATE products p SET stock_quantity = p.stock_quantity + line.quantity, revision = p.revision + 1
    FROM locked JOIN line ON line.product_id = locked.id WHERE p.id = locked.id
    RETURNING p.id, p.price, p.stock_quantity, p.is_active, p.revision
), moved AS (
    INSERT INTO stock_movements (product_id, delta, reason, reservation_id)
    SELECT product_id, quantity, 'release', :reservation_id FROM line
)
SELECT * FROM returned
""")


class Products:
    name = "products"

    settings = Settings(ShopSettings, demo_settings, needs=["DB_URIS.products"])
    db = Database(answers=Answer)
    cluster = ClusterClient()
    hints = Hints(interval_seconds=HINT_SECONDS)
    parking = ParkingLot()
    log_context = LogContext()
    tracing = Tracing()
    metrics = Metrics(prefix="forage")
    stock_mismatches = QueryGauge(STOCK_MISMATCHES, COUNT_MISMATCHES, MISMATCHES_INTERVAL_SECONDS)

    # The catalogue

    @rpc
    def list_products(self, **query):
        """limit (1–100), offset, category, name, is_active, sort_by → {items, total, limit, offset}.

        name: words, each a part of the name, the SKU, the category or the description, without accents and case.
        """
        query = load(ProductQuery(), query)
        matching = select(Product).where(Product.is_active == query["is_active"])
        if query["category"] is not None:
            matching = matching.where(Product.category == normal_text(query["category"]))
        if query["name"]:
            matching = matching.where(*conditions(Product, query["name"]))
        key = getattr(Product, query["sort_by"].removeprefix("-"))
        if key is Product.name:
            key = collate(key, NAME_COLLATION)
        order = (key.desc(), Product.id.desc()) if query["sort_by"].startswith("-") else (key, Product.id)
        with self.db.transaction() as session:
            if query["name"]:
                session.execute(BY_INDEX)
            total = session.scalar(select(func.count()).select_from(matching.subquery()))
            page = session.scalars(matching.order_by(*order).limit(query["limit"]).offset(query["offset"]))
            items = PRODUCT_RECORD.dump(page, many=True)
        return {"items": items, "total": total, "limit": query["limit"], "offset": query["offset"]}

    @rpc
    def list_categories(self):
        """[{category, count}] of the active products, by name."""
        count = select(Product.category, func.count()).where(Product.is_active, Product.category.is_not(None))
        by_name = collate(Product.category, NAME_COLLATION)
        with self.db.transaction() as session:
            rows = session.execute(count.group_by(Product.category).order_by(by_name)).all()
        return [{"category": category, "count": count} for category, count in rows]

    @poll(interval_seconds=5)
    def index_products(self):
        """Have those found that the release before writes while it still runs. True while there may be more."""
        with self.db.transaction() as session:
            products = session.scalars(Product.unindexed(INDEX_BATCH)).all()
            for product in products:
                product.adopt(session)
        return len(products) == INDEX_BATCH

    @rpc
    def get_product(self, product_id, include_inactive=False):
        """Raises ProductNotFound."""
        with self.db.transaction() as session:
            product = session.get(Product, load_id(product_id, "product_id"))
            if product is None or not (product.is_active or include_inactive):
                raise ProductNotFound(product_id)
            return PRODUCT_RECORD.dump(product)

    @rpc
    @once
    def create_product(self, session, **fields):
        """Fields as in contracts.products.ProductRequest. Raises SkuTaken, InvalidInput."""
        fields = load(ProductRequest(), fields)
        if fields["sku"] is None:
            fields["id"] = Product.next_id(session)
            fields["sku"] = Product.made_sku(session, fields["id"])
        product = Product.new(**fields)
        with _unique_sku(session, fields["sku"]):
            session.add(product)
        session.add(StockMovement(product_id=product.id, delta=product.stock_quantity, reason="edit"))
        self._hint(session, product)
        return PRODUCT_RECORD.dump(product)

    @rpc
    @once
    def replace_product(self, session, product_id, version=None, **fields):
        """All fields; stock_quantity and sku are left when absent.

        Raises ProductNotFound, StaleVersion, SkuTaken, InvalidInput.
        """
        return self._edit(session, product_id, version, load(ProductReplacement(), fields))

    @rpc
    @once
    def update_product(self, session, product_id, version=None, **changes):
        """Only the given fields, `is_active` too. Raises as replace_product does."""
        return self._edit(session, product_id, version, load(ProductChanges(partial=True), changes))

    @rpc
    @once
    def set_stock(self, session, product_id, **change):
        """stock_quantity, or delta to add to it. Raises ProductNotFound, InsufficientStock below zero."""
        change = load(StockChange(), change)
        product = self._locked(session, product_id)
        quantity = change.get("stock_quantity", product.stock_quantity + change.get("delta", 0))
        if quantity < 0:
            raise InsufficientStock(product.id, -change["delta"], product.stock_quantity)
        if quantity > MAX_INT:
            raise InvalidInput({"delta": [f"The stock would exceed {MAX_INT}."]})
        return self._save(session, product, {"stock_quantity": quantity})

    @rpc
    @once
    def delete_product(self, session, product_id):
        """Take the product off the catalogue; orders keep their snapshot of it. Raises ProductNotFound."""
        return self._edit(session, product_id, None, {"is_active": False})

    def _edit(self, session, product_id, version, changes):
        if not isinstance(version, int | None):
            raise InvalidInput({"version": ["Not a valid integer."]})
        product = self._locked(session, product_id)
        if version is not None and version != product.version:
            raise StaleVersion(version, product.version)
        return self._save(session, product, changes)

    def _locked(self, session, product_id):
        product = session.get(Product, load_id(product_id, "product_id"), with_for_update=True)
        if product is None:
            raise ProductNotFound(product_id)
        return product

    def _save(self, session, product, changes):
        delta = changes.get("stock_quantity", product.stock_quantity) - product.stock_quantity
        if delta:
            session.add(StockMovement(product_id=product.id, delta=delta, reason="edit"))
        if changes.get("sku", product.sku) is None:
            changes["sku"] = Product.made_sku(session, product.id)
        with _unique_sku(session, changes.get("sku"), but=product.id):
            product.edit(**changes)
        self._hint(session, product)
        return PRODUCT_RECORD.dump(product)

    def _hint(self, session, product):
        """product: anything with the fields of ProductChanged."""
        change = ProductChanged(
            id=product.id,
            price=product.price,
            stock_quantity=product.stock_quantity,
            is_active=product.is_active,
            revision=product.revision,
        )
        self.hints.after_commit(session, change, key=product.id, rank=product.revision)

    # Stock and reservations

    @rpc
    def summarize_stock(self):
        """{low_stock_threshold, low, products}: how many active products have no more left, and the lowest of them."""
        low = select(Product).where(Product.is_active, Product.stock_quantity <= LOW_STOCK)
        lowest = low.order_by(Product.stock_quantity, Product.name, Product.id).limit(LOW_STOCK_SHOWN)
        with self.db.transaction() as session:
            count = session.scalar(select(func.count()).select_from(low.subquery()))
            products = PRODUCT_VIEW.dump(session.scalars(lowest), many=True)
        return {"low_stock_threshold": LOW_STOCK, "low": count, "products": products}

    @rpc
    def check_stock(self, lines):
        """[{product_id, requested, available, sufficient}], a look that reserves nothing. Raises ProductNotFound."""
        request = load(StockLines(), {"lines": lines})
        wanted = {line["product_id"]: line["quantity"] for line in request["lines"]}
        with self.db.transaction() as session:
            products = session.scalars(select(Product).where(Product.id.in_(wanted), Product.is_active))
            available = {product.id: product.stock_quantity for product in products}
        for product_id in wanted:
            if product_id not in available:
                raise ProductNotFound(product_id)
        return [
            {
                "product_id": product_id,
                "requested": quantity,
                "available": available[product_id],
                "sufficient": available[product_id] >= quantity,
            }
            for product_id, quantity in wanted.items()
        ]

    @rpc
    def reserve_stock(self, reservation_id, lines):
        """Reserve stock for every line, or for none.

        lines: [{"product_id": int, "quantity": int, "unit_price"?: "29.99"}], quantity ≥ 1, product_ids distinct.
        Returns {reservation_id, lines: [{product_id, product_name, product_price, quantity}]}.
        Raises ProductNotFound, PriceChanged where a unit_price is not the price, InsufficientStock for the
        first short line, ReservationReleased.
        Safe to repeat: the same reservation_id gives the same answer.
        """
        request = load(ReservationRequest(), {"reservation_id": reservation_id, "lines": lines})
        prices = {line["product_id"]: line["unit_price"] for line in request["lines"]}
        with self.db.transaction() as session:
            rows = session.execute(
                RESERVE,
                {
                    "reservation_id": request["reservation_id"],
                    "product_ids": list(prices),
                    "quantities": [line["quantity"] for line in request["lines"]],
                },
            ).all()
            if not rows[0].claimed:
                return self._earlier_answer(session, request["reservation_id"])
            for row in rows:
                if not row.is_active:
                    raise ProductNotFound(row.id)
                if prices[row.id] not in (None, row.price):
                    raise PriceChanged(row.id, prices[row.id], row.price)
                if row.revision is None:
                    raise InsufficientStock(row.id, row.quantity, row.available)
            for row in rows:
                self._hint(session, row)
        return _reservation_view(
            request["reservation_id"], [(row.id, row.name, row.price, row.quantity) for row in rows]
        )

    def _earlier_answer(self, session, reservation_id):
        if session.get(Reservation, reservation_id).state == "released":
            raise ReservationReleased(reservation_id)
        line = ReservationLine
        lines = session.execute(
            select(line.product_id, line.product_name, line.product_price, line.quantity)
            .where(line.reservation_id == reservation_id)
            .order_by(line.product_id)
        ).all()
        return _reservation_view(reservation_id, lines)

    @rpc
    def release_stock(self, reservation_id):
        """Give back what an open reservation holds; one that never was becomes released, so it never will be.

        Does nothing to a committed one: only its order's cancel gives that back. Safe to repeat.
        Returns {reservation_id, state}.
        """
        reservation_id = load(ReservationId(), {"reservation_id": reservation_id})["reservation_id"]
        with self.db.transaction() as session:
            self._release_unordered(session, reservation_id)
            state = session.get(Reservation, reservation_id).state
        return {"reservation_id": str(reservation_id), "state": state}

    def _release_unordered(self, session, reservation_id):
        tombstone = text("INSERT INTO reservations (id, state) VALUES (:id, 'released') ON CONFLICT DO NOTHING")
        session.execute(tombstone, {"id": reservation_id})
        self._release(session, reservation_id, ["open"])

    def _release(self, session, reservation_id, states):
        for product in session.execute(RELEASE, {"reservation_id": reservation_id, "states": states}).all():
            self._hint(session, product)

    def _commit(self, session, reservation_id):
        session.execute(
            text("UPDATE reservations SET state = 'committed' WHERE id = :id AND state = 'open'"),
            {"id": reservation_id},
        )

    @event_handler(OrderCreated)
    def commit_reservation(self, event):
        """A released reservation stays released: its order was cancelled, and that event came first."""
        with self.db.transaction() as session:
            if InboxEntry.take(session, event.event_id):
                self._commit(session, event.reservation_id)

    @event_handler(OrderAbandoned)
    def release_abandoned_stock(self, event):
        with self.db.transaction() as session:
            if InboxEntry.take(session, event.event_id):
                self._release_unordered(session, event.reservation_id)

    @event_handler(OrderStatusUpdated)
    def return_cancelled_stock(self, event):
        with self.db.transaction() as session:
            if InboxEntry.take(session, event.event_id) and event.new_status == "cancelled":
                self._release(session, event.reservation_id, ["open", "committed"])

    @timer(interval=60)
    def settle_open_reservations(self):
        """Ask orders what became of reservations that are open for long.

        Releases on `abandoned` alone; an error or a timeout says nothing, and ends the round.
        """
        patience_seconds = self.settings["SETTLE_AFTER_SECONDS"]
        old = Reservation.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, patience_seconds)
        with self.db.transaction() as session:
            unsettled = session.scalars(
                select(Reservation.id).where(Reservation.state == "open", old).limit(SETTLE_BATCH)
            ).all()
        for reservation_id in unsettled:
            try:
                answer = self.cluster.orders.find_reservation(reservation_id=str(reservation_id))
            except (ServiceUnavailable, RpcTimeout) as error:
                logger.warning("orders can't be asked about open reservations now, only later: %r", error)
                return
            with self.db.transaction() as session:
                if answer == "abandoned":
                    self._release_unordered(session, reservation_id)
                elif answer == "ordered":
                    self._commit(session, reservation_id)

    # Operation

    @rpc
    def list_parked(self, limit=50, offset=0):
        """{messages: [{message_id, queue, reason, attempts, parked_at, body}], total}, newest first.

        Of more than 1,000 the oldest 1,000 are listed. Raises ParkingLotBusy, as all below.
        """
        return self.parking.list(**load(ParkedQuery(), {"limit": limit, "offset": offset}))

    @rpc
    def count_parked(self):
        return self.parking.count()

    @rpc
    def replay_parked(self, message_id):
        """Hand the message to its handler once more. Raises ParkedMessageNotFound, NotReplayable, TooManyParked."""
        if not self.parking.replay(message_id):
            raise ParkedMessageNotFound(message_id)

    @rpc
    def discard_parked(self, message_id):
        """Drop the message for good. Raises ParkedMessageNotFound, TooManyParked."""
        if not self.parking.discard(message_id):
            raise ParkedMessageNotFound(message_id)

    @rpc
    def replay_all_parked(self, queue=None, reason=None, left=None):
        """Hand up to 500 messages to their handlers once more, of this queue, with this in their reason.

        Returns {done, kept, left}: call again with its `left` until that is 0.
        """
        return self.parking.replay_all(**load(ParkedSelection(), {"queue": queue, "reason": reason, "left": left}))

    @rpc
    def discard_all_parked(self, queue=None, reason=None, left=None):
        """Drop up to 500 messages for good; as replay_all_parked."""
        return self.parking.discard_all(**load(ParkedSelection(), {"queue": queue, "reason": reason, "left": left}))

    @rpc
    def health(self):
        self.db.check()
        return {"status": "up"}

    @timer(interval=3600)
    def forget_answers(self):
        with self.db.transaction() as session:
            Answer.forget_old(session)


@contextmanager
def _unique_sku(session, sku, but=None):
    """Writes what is changed inside. Raises SkuTaken; Taken when that product has just given the SKU up."""
    try:
        with session.begin_nested():
            yield
    except IntegrityError as error:
        holder = session.scalar(Product.with_sku(sku, but=but))
        raise Taken("sku") if holder is None else SkuTaken(holder.id, holder.name, holder.is_active) from error


def _reservation_view(reservation_id, lines):
    """lines: (product_id, name, price, quantity) each."""
    names = ("product_id", "product_name", "product_price", "quantity")
    return {
        "reservation_id": str(reservation_id),
        "lines": [
            dict(zip(names, (product_id, name, str(price), quantity), strict=True))
            for product_id, name, price, quantity in lines
        ],
    }
