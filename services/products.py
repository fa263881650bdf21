"""products: the catalogue, the stock and its reservations.

Owns:     products_db
RPC:      list_products, list_categories, get_product, create_product, replace_product, update_product,
          set_stock, delete_product, summarize_stock, check_stock, reserve_stock, release_stock,
          list_parked, count_parked, replay_parked, discard_parked, replay_all_parked, discard_all_parked,
          health
Emits:    product.changed (a hint)
Handles:  order.status.updated, order.abandoned; order.created without effect
Calls:    orders.find_reservations, orders.find_reservation
"""

import logging
from typing import Any
from uuid import UUID

from nameko.exceptions import MethodNotFound
from prometheus_client import Gauge
from sqlalchemy import Row
from sqlalchemy.orm import Session

from contracts.demo_settings import demo_settings
from contracts.orders import OrderAbandoned, OrderCreated, OrderStatusUpdated
from contracts.products import (
    ProductChanged,
    ProductChanges,
    ProductQuery,
    ProductRecord,
    ProductReplacement,
    ProductRequest,
    ReservationId,
    ReservationRequest,
    StockChange,
    StockLines,
)
from contracts.settings import ShopSettings
from contracts.types import JsonObject, load
from nameko_reliable.database import Database
from nameko_reliable.errors import DatabaseUnavailable, RpcTimeout, ServiceUnavailable
from nameko_reliable.events import event_handler
from nameko_reliable.hints import Hints
from nameko_reliable.inbox import once
from nameko_reliable.parking import parked_messages
from nameko_reliable.rpc import rpc
from nameko_reliable.settings import Settings
from nameko_reliable.statements import run
from nameko_reliable.telemetry.gauges import QueryGauge
from nameko_reliable.timers import timer
from services.base import CheckedParkingLot, Service
from services.products_catalogue import (
    add_product,
    edit_product,
    edit_stock,
    read_categories,
    read_low_stock,
    read_product,
    read_products,
)
from services.products_models import Answer, Base, InboxEntry, Product, Reservation
from services.products_statements import (
    COMMIT_ORDERED,
    COUNT_MISMATCHES,
    DUE_RESERVATIONS,
    RELEASE,
    TAKE_SETTLING,
    TOMBSTONE,
)
from services.products_stock import check_lines, reserve

logger = logging.getLogger(__name__)

PRODUCT_QUERY, PRODUCT_RECORD = ProductQuery(), ProductRecord()
RESERVATION_REQUEST = ReservationRequest()
HINT_SECONDS = 0.25
SETTLE_BATCH = 500

STOCK_MISMATCHES = Gauge("forage_stock_mismatches", "Products whose stock is not the sum of their ledger.", ["service"])
MISMATCHES_INTERVAL_SECONDS = 300


def changed_event(product: Product | Row[Any]) -> ProductChanged:
    """product: a product, or a row with the fields of ProductChanged."""
    return ProductChanged(
        id=product.id,
        price=product.price,
        stock_quantity=product.stock_quantity,
        is_active=product.is_active,
        revision=product.revision,
    )


@parked_messages
class Products(Service):
    name = "products"

    settings = Settings(ShopSettings, demo_settings, needs=["DB_URIS.products"])
    db = Database(Base, answers=Answer)
    hints = Hints(interval_seconds=HINT_SECONDS)
    parking = CheckedParkingLot()
    stock_mismatches = QueryGauge(STOCK_MISMATCHES, COUNT_MISMATCHES, MISMATCHES_INTERVAL_SECONDS)

    # The catalogue

    @rpc
    def list_products(self, **query: Any) -> JsonObject:
        """{items, total, limit, offset}. query: as contracts.products.ProductQuery. Raises InvalidInput.

        name: words. Each must be in the name, the SKU, the category or the description. Accents and case are ignored.
        """
        query = load(PRODUCT_QUERY, query)
        total, items = read_products(self.db.execute, query)
        return {"items": items, "total": total, "limit": query["limit"], "offset": query["offset"]}

    @rpc
    def list_categories(self) -> list[JsonObject]:
        """[{category, count}] of active products, sorted by category."""
        return read_categories(self.db.execute)

    @rpc
    def get_product(self, product_id: int, include_inactive: bool = False) -> JsonObject:
        """Raises ProductNotFound."""
        return read_product(self.db.execute, product_id, include_inactive)

    @rpc
    @once
    def create_product(self, session: Session, /, **fields: Any) -> JsonObject:
        """fields: as contracts.products.ProductRequest. Raises SkuTaken, InvalidInput."""
        return self._hint_and_write(session, add_product(session, load(ProductRequest(), fields)))

    @rpc
    @once
    def replace_product(
        self, session: Session, /, product_id: int, version: int | None = None, **fields: Any
    ) -> JsonObject:
        """Set all fields; stock_quantity and sku keep their values when absent.

        Raises ProductNotFound, StaleVersion, SkuTaken, InvalidInput.
        """
        fields = load(ProductReplacement(), fields)
        return self._hint_and_write(session, edit_product(session, product_id, version, fields))

    @rpc
    @once
    def update_product(
        self, session: Session, /, product_id: int, version: int | None = None, **changes: Any
    ) -> JsonObject:
        """Change only the given fields, which may include `is_active`. Raises as replace_product does."""
        changes = load(ProductChanges(partial=True), changes)
        return self._hint_and_write(session, edit_product(session, product_id, version, changes))

    @rpc
    @once
    def set_stock(self, session: Session, /, product_id: int, **change: int) -> JsonObject:
        """Set stock_quantity, or add delta to it. Raises ProductNotFound, InsufficientStock below zero."""
        return self._hint_and_write(session, edit_stock(session, product_id, load(StockChange(), change)))

    @rpc
    @once
    def delete_product(self, session: Session, product_id: int) -> JsonObject:
        """Make the product inactive. Orders keep the name and the price that they stored. Raises ProductNotFound."""
        return self._hint_and_write(session, edit_product(session, product_id, None, {"is_active": False}))

    def _hint_and_write(self, session: Session, product: Product) -> JsonObject:
        self._hint(session, product)
        return PRODUCT_RECORD.write(product)

    def _hint(self, session: Session, product: Product | Row[Any]) -> None:
        self.hints.after_commit(session, changed_event(product), key=product.id, rank=product.revision)

    # Stock and reservations

    @rpc
    def summarize_stock(self) -> JsonObject:
        """{low_stock_threshold, low, products}. Only active products count.

        low: how many have at most low_stock_threshold units. products: those of them with the least stock.
        """
        return read_low_stock(self.db.execute)

    @rpc
    def check_stock(self, lines: list[JsonObject]) -> list[JsonObject]:
        """[{product_id, requested, available, sufficient}]. Reserves nothing. Raises ProductNotFound."""
        request = load(StockLines(), {"lines": lines})
        with self.db.transaction() as session:
            return check_lines(session, request["lines"])

    @rpc
    def reserve_stock(self, reservation_id: str, lines: list[JsonObject]) -> JsonObject:
        """Reserve stock for all lines, or for none.

        lines: [{"product_id": int, "quantity": int, "unit_price"?: "29.99"}], quantity ≥ 1, product_ids distinct.
        Returns {reservation_id, lines: [{product_id, product_name, product_price, quantity}]}.
        Raises ProductNotFound, PriceChanged if a unit_price is not the current price, InsufficientStock for the first
        line without enough stock, ReservationReleased.
        Safe to repeat: the same reservation_id gives the same answer.
        """
        request = load(RESERVATION_REQUEST, {"reservation_id": reservation_id, "lines": lines})
        answer, changed = reserve(self.db, request)
        for product in changed:
            self.hints.send(changed_event(product), key=product.id, rank=product.revision)
        return answer

    @rpc
    def release_stock(self, reservation_id: str) -> JsonObject:
        """Release a reservation that has no order. An unknown one is stored as released, so a late reserve_stock fails.

        One whose order was placed, or is being placed, stays as it is: only the cancel of its order releases its stock.
        Safe to repeat. Returns {reservation_id, state}; the state is None while nothing is reserved.
        Raises ServiceUnavailable or RpcTimeout if orders does not answer: then nothing is released.
        """
        loaded_id = load(ReservationId(), {"reservation_id": reservation_id})["reservation_id"]
        # orders abandons a reservation that it does not know. 0.1.0 answers this call, too.
        attempt_state = self.cluster.orders.find_reservation(reservation_id=str(loaded_id))
        with self.db.transaction() as session:
            if attempt_state == "abandoned":
                self._release_open(session, loaded_id)
            reservation = session.get(Reservation, loaded_id)
        return {"reservation_id": str(loaded_id), "state": reservation.state if reservation is not None else None}

    def _release_open(self, session: Session, reservation_id: UUID) -> None:
        run(session, TOMBSTONE, reservation_id=reservation_id)
        self._release(session, reservation_id, ["open"])

    def _release(self, session: Session, reservation_id: UUID, states: list[str]) -> None:
        for product in run(session, RELEASE, reservation_id=reservation_id, states=states):
            self._hint(session, product)

    @event_handler(OrderCreated)
    def commit_reservation(self, event: OrderCreated) -> None:
        """Takes what orders of 0.1.0 sends, without effect: `settle_open_reservations` commits reservations.

        The next release has no such handler.
        """

    @event_handler(OrderAbandoned)
    def release_abandoned_stock(self, event: OrderAbandoned) -> None:
        with self.db.transaction() as session:
            if InboxEntry.take(session, event.event_id):
                self._release_open(session, event.reservation_id)

    @event_handler(OrderStatusUpdated)
    def return_cancelled_stock(self, event: OrderStatusUpdated) -> None:
        with self.db.transaction() as session:
            if InboxEntry.take(session, event.event_id) and event.new_status == "cancelled":
                self._release(session, event.reservation_id, ["open", "committed"])

    @timer(interval=60)
    def settle_open_reservations(self) -> None:
        """Ask orders about reservations that have been open for longer than SETTLE_AFTER_SECONDS, and settle them.

        Only the answer `abandoned` releases stock. An error or a timeout releases nothing, and ends the round.
        """
        after: UUID | None = UUID(int=0)
        while after is not None:
            after = self._settle_next(after)

    def _settle_next(self, after: UUID) -> UUID | None:
        """Settle the due reservations with the next ids. Returns the last id, or None when there are no more."""
        with self.db.transaction() as session:
            # The lock is held while orders answers, so that only one replica asks.
            [lock] = run(session, TAKE_SETTLING)
            if not lock.is_taken:
                return None
            due = run(
                session,
                DUE_RESERVATIONS,
                after=after,
                settle_after_seconds=self.settings["SETTLE_AFTER_SECONDS"],
                most=SETTLE_BATCH,
            )
            ids = [row.id for row in due]
            states = self._find_reservations(ids)
            if ordered := [one for one in ids if states.get(str(one)) == "ordered"]:
                run(session, COMMIT_ORDERED, reservation_ids=ordered)
        for reservation_id in ids:
            if states.get(str(reservation_id)) == "abandoned":
                self._release_alone(reservation_id)
        return ids[-1] if states and len(ids) == SETTLE_BATCH else None

    def _find_reservations(self, ids: list[UUID]) -> dict[str, str]:
        """The answer of orders. Empty if it does not answer."""
        if not ids:
            return {}
        try:
            answer: dict[str, str] = self.cluster.orders.find_reservations(reservation_ids=list(map(str, ids)))
        except (ServiceUnavailable, RpcTimeout, MethodNotFound) as error:
            # MethodNotFound: a replica of 0.1.0, which does not know the method.
            logger.warning("orders does not answer about open reservations, they are settled later: %r", error)
            return {}
        return answer

    def _release_alone(self, reservation_id: UUID) -> None:
        """One that fails stays open, and costs the others nothing: a later run finds it again."""
        try:
            with self.db.transaction() as session:
                self._release_open(session, reservation_id)
        except DatabaseUnavailable:
            raise
        except Exception:
            logger.exception("the reservation %s could not be released", reservation_id)

    # Operation

    @rpc
    def health(self) -> dict[str, str]:
        """{"status": "up"}. Raises DatabaseUnavailable."""
        self.db.check()
        return {"status": "up"}

    @timer(interval=3600)
    def forget_answers(self) -> None:
        with self.db.transaction() as session:
            Answer.forget_old(session)
