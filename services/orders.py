"""orders: placed orders, their statuses, and the attempts that make placing an order safe to repeat.

Owns:   orders_db
RPC:    create_order, get_order, list_orders, summarize_orders, update_status, find_reservations,
        find_reservation, health
Emits:  order.created, order.status.updated, order.abandoned
Calls:  products.reserve_stock

An order begins as an attempt, which is committed before any stock is reserved. The order's own transaction changes the
attempt from open to ordered. Stock is released only after the attempt was changed from open to abandoned. Only one of
the two changes can happen.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, update
from sqlalchemy.orm import Session

from contracts.demo_settings import demo_settings
from contracts.orders import (
    OrderAbandoned,
    OrderCreated,
    OrderNotFound,
    OrderPlacement,
    OrderQuery,
    OrderStatusUpdated,
    OrderStep,
    OrderView,
    ProductsTimeout,
    ProductsUnavailable,
    SummaryQuery,
)
from contracts.products import ReservationId, ReservationIds, ReservationReleased
from contracts.settings import ShopSettings
from contracts.types import JsonObject, NotAllowed, load, load_id
from nameko_reliable.database import Database
from nameko_reliable.errors import RpcTimeout, ServiceUnavailable
from nameko_reliable.inbox import once
from nameko_reliable.outbox import Outbox
from nameko_reliable.rpc import rpc
from nameko_reliable.settings import Settings
from nameko_reliable.statements import run
from nameko_reliable.timers import timer
from services.base import Service
from services.orders_attempts import begin_attempt, merge_items
from services.orders_events import event_of
from services.orders_models import Answer, Attempt, Base, Order, OutboxEntry
from services.orders_statements import (
    ABANDON_UNKNOWN,
    ATTEMPT_STATES,
    COUNT_ORDERS,
    COUNT_SIZE,
    LOCK_DEAD,
    LOCK_EXPIRED,
    PLACE_ORDER,
    columns_of,
    read_order,
    read_orders,
    select_unconfirmed,
    select_with_details,
    summarize,
)

ORDER_PLACEMENT, ORDER_QUERY, ORDER_VIEW = OrderPlacement(), OrderQuery(), OrderView()
CANCEL_BATCH = 100
ABANDONED_ATTEMPT_DAYS = 30


def view_when_placed(order: Order) -> JsonObject:
    """The answer when the order was placed, without its later steps."""
    view = ORDER_VIEW.write(order)
    return {**view, "status": "pending", "updated_at": view["created_at"], "history": view["history"][:1]}


class Orders(Service):
    name = "orders"

    settings = Settings(ShopSettings, demo_settings, needs=["DB_URIS.orders"])
    db = Database(Base, answers=Answer)
    outbox = Outbox(OutboxEntry, events=[OrderCreated, OrderStatusUpdated, OrderAbandoned])

    @rpc
    def create_order(
        self,
        user_id: int,
        user_email: str,
        items: list[JsonObject],
        idempotency_key: str | None = None,
        email_verified: bool = False,
    ) -> JsonObject:
        """Place an order for all items, or for none.

        items: [{"product_id": int, "quantity": int, "unit_price"?: "29.99"}]; lines of one product are merged.
        idempotency_key: 1–255 characters, unique for the user; a repeat gets the first answer again, once there is one.
        The default is the id of the call.
        email_verified: whether the address is proven. An unproven address gets few mails (services.notifications), and
        its account may have fewer open orders.
        Raises InvalidInput, TooManyOpenOrders, ProductNotFound, InsufficientStock, PriceChanged, ProductsUnavailable,
        ProductsTimeout: after each of them the key is free again. Raises KeyReused and RequestInFlight: then the key
        still belongs to its first call.
        """
        placement = load(
            ORDER_PLACEMENT,
            {
                "user_id": user_id,
                "user_email": user_email,
                "email_verified": email_verified,
                "items": items,
                "idempotency_key": self.db.call_id if idempotency_key is None else idempotency_key,
            },
        )
        lines = merge_items(placement["items"])
        limits = self._open_limits(placement["email_verified"])
        reservation_id, state = begin_attempt(self.db, placement, lines, *limits)
        if state == "ordered":
            return self._first_answer(reservation_id)
        try:
            return self._place(reservation_id, placement, self._reserve(reservation_id, lines))
        except Exception:
            # A commit whose answer was lost may have succeeded. The attempt's row shows it, once it can be locked.
            if self._abandon_unless_ordered(reservation_id):
                raise
            return self._first_answer(reservation_id)

    def _open_limits(self, email_verified: bool) -> tuple[int, int]:
        """The largest numbers of open orders and of units in them."""
        names = ("MAX_OPEN_ORDERS_UNPROVEN", "MAX_OPEN_UNITS_UNPROVEN")
        if email_verified:
            names = ("MAX_OPEN_ORDERS", "MAX_OPEN_UNITS")
        orders, units = (max(1, round(self.settings[name] * self.settings["RATE_LIMIT_SCALE"])) for name in names)
        return orders, units

    def _reserve(self, reservation_id: UUID, lines: list[JsonObject]) -> list[JsonObject]:
        try:
            answer = self.cluster.products.reserve_stock(reservation_id=str(reservation_id), lines=lines)
        except (RpcTimeout, ReservationReleased) as error:
            # ReservationReleased: the attempt took too long, and was abandoned meanwhile.
            raise ProductsTimeout from error
        except ServiceUnavailable as error:
            raise ProductsUnavailable from error
        return answer["lines"]

    def _place(self, reservation_id: UUID, placement: JsonObject, lines: list[JsonObject]) -> JsonObject:
        """Turn the open attempt into an order, with its event, or return the order that a faster call made of it.

        Raises ProductsTimeout if the lease ended and the attempt was abandoned meanwhile.
        """
        customer = placement["user_id"], placement["user_email"], placement["email_verified"]
        order = Order.placed(reservation_id, *customer, lines)
        [attempt] = self.db.execute(PLACE_ORDER, **columns_of(order), **self.outbox.columns(event_of(order, 1)))
        if attempt.state == "open":
            self.outbox.wake()
            order.note_placed(attempt.id, attempt.item_ids, attempt.created_at)
            return ORDER_VIEW.write(order)
        if attempt.state == "ordered":
            return self._first_answer(reservation_id)
        raise ProductsTimeout

    def _first_answer(self, reservation_id: UUID) -> JsonObject:
        with self.db.transaction(past_deadline=True) as session:
            return view_when_placed(
                session.scalars(select_with_details().where(Order.reservation_id == reservation_id)).one()
            )

    def _abandon_unless_ordered(self, reservation_id: UUID) -> bool:
        """Abandon the attempt, which releases its stock, unless it became an order. True if it is abandoned."""
        with self.db.transaction(past_deadline=True) as session:
            self._abandon_attempts(session, [reservation_id])
            return session.get_one(Attempt, reservation_id).state == "abandoned"

    def _abandon_attempts(self, session: Session, reservation_ids: list[UUID]) -> None:
        """Abandon those that are open. Several must have been locked, in id order."""
        abandoned = session.scalars(
            update(Attempt)
            .where(Attempt.reservation_id.in_(reservation_ids), Attempt.state == "open")
            .values(state="abandoned")
            .returning(Attempt.reservation_id)
        ).all()
        for reservation_id in abandoned:
            self.outbox.add(session, OrderAbandoned(reservation_id=reservation_id))

    @rpc
    def find_reservations(self, reservation_ids: list[str]) -> dict[str, str]:
        """{reservation id: the state of its attempt, "open", "ordered" or "abandoned"}. At most 500 ids.

        A fence: the call abandons attempts that are past their lease or unknown, so that a late order fails.
        """
        ids = load(ReservationIds(), {"reservation_ids": reservation_ids})["reservation_ids"]
        return {str(reservation_id): state for reservation_id, state in self._settle_attempts(ids).items()}

    @rpc
    def find_reservation(self, reservation_id: str) -> str:
        """As find_reservations, for one. products of 0.1.0 settles its reservations by it."""
        attempt_id = load(ReservationId(), {"reservation_id": reservation_id})["reservation_id"]
        return self._settle_attempts([attempt_id])[attempt_id]

    def _settle_attempts(self, ids: list[UUID]) -> dict[UUID, str]:
        with self.db.transaction() as session:
            run(session, ABANDON_UNKNOWN, reservation_ids=ids)
            expired = [row.reservation_id for row in run(session, LOCK_EXPIRED, reservation_ids=ids)]
            if expired:
                self._abandon_attempts(session, expired)
            return {row.reservation_id: row.state for row in run(session, ATTEMPT_STATES, reservation_ids=ids)}

    @rpc
    def get_order(self, order_id: int, user_id: int | None = None) -> JsonObject:
        """user_id: the owner, None for any. Raises OrderNotFound."""
        return read_order(self.db.execute, order_id, user_id)

    @rpc
    def list_orders(self, user_id: int | None = None, **query: Any) -> JsonObject:
        """{orders, total}, newest first. user_id: the owner, None for all.

        query: as contracts.orders.OrderQuery. Raises InvalidInput.
        """
        total, orders = read_orders(self.db.execute, user_id, load(ORDER_QUERY, query))
        return {"orders": orders, "total": total}

    @rpc
    def summarize_orders(self, days: int = 30) -> JsonObject:
        """{today: {orders, revenue}, by_status: {status: count}, daily: [{date, orders, revenue}]}.

        daily: the last `days` days in UTC, oldest first, today included. by_status: the number of all orders.
        Cancelled orders count only in by_status. Raises InvalidInput.
        """
        return summarize(self.db.execute, load(SummaryQuery(), {"days": days})["days"])

    @rpc
    @once
    def update_status(
        self, session: Session, order_id: int, status: str, user_id: int | None = None, email_verified: bool = False
    ) -> JsonObject:
        """Take an order's next step. A cancel releases its stock.

        user_id: the customer, who may only cancel, and only their own order. None for the back office.
        email_verified: whether the caller's address is proven. For a customer the order stores a true value, and its
        later events carry it.
        Raises InvalidInput, OrderNotFound, NotAllowed, IllegalTransition.
        """
        step = load(OrderStep(), {"status": status, "email_verified": email_verified})
        status = step["status"]
        order = self._lock(session, order_id, user_id)
        if user_id is not None and status != "cancelled":
            raise NotAllowed
        if user_id is not None and step["email_verified"]:
            order.email_verified = True
        self._move(session, order, status, by="admin" if user_id is None else "customer")
        return ORDER_VIEW.write(order)

    def _lock(self, session: Session, order_id: int, user_id: int | None) -> Order:
        wanted = select_with_details().where(Order.id == load_id(order_id, "order_id"))
        order = session.scalar(wanted.with_for_update(of=Order))
        if order is None or user_id not in (None, order.user_id):
            raise OrderNotFound(order_id)
        return order

    def _move(self, session: Session, order: Order, status: str, by: str) -> None:
        order.move_to(status, by)
        session.flush()
        self.outbox.add(session, event_of(order, len(order.history)), key=order.id)

    @rpc
    def health(self) -> dict[str, str]:
        """{"status": "up"}. Raises DatabaseUnavailable."""
        self.db.check()
        return {"status": "up"}

    @timer(interval=60)
    def end_dead_attempts_and_unconfirmed_orders(self) -> None:
        """Abandon attempts whose call died. Cancel orders that have been pending for longer than PENDING_ORDER_HOURS.

        With PENDING_ORDER_HOURS = 0 no order is cancelled.
        """
        self._abandon_dead_attempts()
        while self.settings["PENDING_ORDER_HOURS"] and self._cancel_next_unconfirmed():
            pass

    def _abandon_dead_attempts(self) -> None:
        # products asks only about attempts that have reserved stock. Until they are abandoned, all count as open.
        with self.db.transaction() as session:
            if dead := [row.reservation_id for row in run(session, LOCK_DEAD)]:
                self._abandon_attempts(session, dead)

    def _cancel_next_unconfirmed(self) -> bool:
        """True while there may be more."""
        with self.db.transaction() as session:
            orders = session.scalars(select_unconfirmed(self.settings["PENDING_ORDER_HOURS"], CANCEL_BATCH)).all()
            for order in orders:
                self._move(session, order, "cancelled", by="system")
        return len(orders) == CANCEL_BATCH

    @timer(interval=10)
    def count_orders(self) -> None:
        """Add orders that are new or took a step to the sums by day and status: others are not counted again."""
        while self.db.execute(COUNT_ORDERS)[0].orders == COUNT_SIZE:
            pass

    @timer(interval=3600)
    def forget_answers_and_dead_attempts(self) -> None:
        with self.db.transaction() as session:
            Answer.forget_old(session)
            old = Attempt.created_at < func.now() - timedelta(days=ABANDONED_ATTEMPT_DAYS)
            session.execute(delete(Attempt).where(Attempt.state == "abandoned", old))
