"""The tables of orders, and the transitions of orders and attempts."""

from datetime import date, datetime
from decimal import Decimal
from typing import Self
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Numeric,
    Text,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from contracts.orders import IllegalTransition
from contracts.types import MAX_MONEY, InvalidInput, JsonObject
from nameko_reliable.tables import AnswerMixin, OutboxMixin

NEXT_STATUSES = {
    "pending": ("confirmed", "cancelled"),
    "confirmed": ("shipped", "cancelled"),
    "shipped": ("delivered",),
    "delivered": (),
    "cancelled": (),
}


class Base(DeclarativeBase):
    pass


class OutboxEntry(OutboxMixin, Base):
    pass


class Answer(AnswerMixin, Base):
    pass


class Attempt(Base):
    """open → ordered or abandoned, both final.

    An open attempt belongs to the call that made it. Once its lease has ended, the next call with its key takes it
    over. user_id, key and units are null if products asked about the reservation before orders knew it. units is also
    null in attempts from before 0.1.0.
    """

    __tablename__ = "attempts"

    reservation_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(BigInteger)
    key: Mapped[str | None] = mapped_column(Text)
    fingerprint: Mapped[str | None] = mapped_column(Text)
    units: Mapped[int | None] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(Text)
    leased_until: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (
        CheckConstraint("state IN ('open', 'ordered', 'abandoned')", name="ck_attempts_state"),
        # An abandoned attempt frees its key.
        Index("uq_attempts_user_id_key", "user_id", "key", unique=True, postgresql_where=text("state <> 'abandoned'")),
        Index("ix_attempts_open", "user_id", postgresql_where=text("state = 'open'")),
        Index("ix_attempts_abandoned", "created_at", postgresql_where=text("state = 'abandoned'")),
    )


# OrderSum does not have the order with its present status. An integer, since PostgreSQL expects the bare comparison to
# hold for most orders, and would read the table instead of the index.
IS_UNCOUNTED = "CAST(counted_status IS DISTINCT FROM status AS integer) = 1"


class Order(Base):
    """email_verified: whether the customer's address was proven at their last call about this order.

    counted_status: the status with which OrderSum has the order, null before it is counted. A step does not change it:
    code that writes orders, such as the release before, does not have to know it.
    """

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    reservation_id: Mapped[UUID] = mapped_column(ForeignKey("attempts.reservation_id"), unique=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    user_email: Mapped[str] = mapped_column(Text)
    email_verified: Mapped[bool] = mapped_column(Boolean, server_default="false")
    status: Mapped[str] = mapped_column(Text)
    counted_status: Mapped[str | None] = mapped_column(Text)
    total_amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    items: Mapped[list["OrderItem"]] = relationship(order_by="OrderItem.id")
    history: Mapped[list["StatusStep"]] = relationship(order_by="StatusStep.id")

    __table_args__ = (
        Index("ix_orders_user_id_id", "user_id", "id"),
        Index("ix_orders_open", "user_id", postgresql_where=text("status IN ('pending', 'confirmed')")),
        Index("ix_orders_status_id", "status", "id"),
        Index("ix_orders_created_at", "created_at"),
        Index("ix_orders_pending", "created_at", postgresql_where=text("status = 'pending'")),
        Index("ix_orders_uncounted", "id", postgresql_where=text(IS_UNCOUNTED)),
    )

    @classmethod
    def placed(
        cls, reservation_id: UUID, user_id: int, user_email: str, email_verified: bool, lines: list[JsonObject]
    ) -> Self:
        """A new order. lines: reserved lines, {product_id, product_name, product_price, quantity} each.

        Raises InvalidInput when the total exceeds MAX_MONEY.
        """
        items = [OrderItem.sold(line) for line in lines]
        total_amount = sum((item.subtotal for item in items), Decimal(0))
        if total_amount > MAX_MONEY:
            raise InvalidInput({"items": [f"The total would exceed {MAX_MONEY}."]})
        return cls(
            reservation_id=reservation_id,
            user_id=user_id,
            user_email=user_email,
            email_verified=email_verified,
            status="pending",
            total_amount=total_amount,
            items=items,
            history=[StatusStep(status="pending", by="customer")],
        )

    def note_placed(self, order_id: int, item_ids: list[int], at: datetime) -> None:
        """Take over what the database has set when it stored a new order."""
        self.id, self.created_at, self.updated_at, self.history[0].at = order_id, at, at, at
        for item, item_id in zip(self.items, item_ids, strict=True):
            item.id, item.order_id, item.created_at = item_id, order_id, at

    def move_to(self, status: str, by: str) -> None:
        """Take a step. by: `customer`, `admin` or `system`. Raises IllegalTransition."""
        if status not in NEXT_STATUSES[self.status]:
            raise IllegalTransition(self.status, status)
        self.status = status
        self.updated_at = func.now()
        self.history.append(StatusStep(status=status, by=by))


class OrderSum(Base):
    """The number and the revenue of the orders of a day in UTC with a status, by their `counted_status`.

    A few rows for each day. With the orders that are not counted yet, they are all orders.
    """

    __tablename__ = "order_sums"

    day: Mapped[date] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(Text, primary_key=True)
    orders: Mapped[int] = mapped_column(BigInteger)
    revenue: Mapped[Decimal] = mapped_column(Numeric(20, 2))


class OrderItem(Base):
    """A line of an order, with the product's name and price at the time of the sale."""

    __tablename__ = "order_items"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    product_id: Mapped[int] = mapped_column(BigInteger)
    product_name: Mapped[str] = mapped_column(Text)
    product_price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    quantity: Mapped[int] = mapped_column(Integer)
    subtotal: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @classmethod
    def sold(cls, line: JsonObject) -> Self:
        price = Decimal(line["product_price"])
        return cls(
            product_id=line["product_id"],
            product_name=line["product_name"],
            product_price=price,
            quantity=line["quantity"],
            subtotal=price * line["quantity"],
        )


class StatusStep(Base):
    """A step in the history of an order. The number of steps is the sequence of the order's last event."""

    __tablename__ = "status_steps"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    status: Mapped[str] = mapped_column(Text)
    by: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
