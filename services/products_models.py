"""The tables of products: catalogue, ledger and reservations."""

from datetime import datetime
from decimal import Decimal
from itertools import count
from typing import Any, Self
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
    Select,
    Text,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, validates

from contracts.names import normal_sku
from nameko_reliable.tables import AnswerMixin, InboxMixin
from services.products_search import search_columns

# Unicode's order of letters, for no particular language.
NAME_COLLATION = "und-x-icu"
IS_ACTIVE = text("is_active")


class Base(DeclarativeBase):
    pass


class InboxEntry(InboxMixin, Base):
    pass


class Answer(AnswerMixin, Base):
    pass


class Product(Base):
    """version: raised by each edit. revision: raised by each change, sales included.

    sku_key: the normal form by which SKUs are unique. None for a SKU that clashed with an older product's when this
    column was added: see ops/normalize_names.py.
    search_version: the version whose texts are in the search columns. 0.1.0, which may run beside this release, updates
    the search columns of products whose search_version is not their version.
    """

    __tablename__ = "products"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    stock_quantity: Mapped[int] = mapped_column(BigInteger)
    sku: Mapped[str] = mapped_column(Text, unique=True)
    sku_key: Mapped[str | None] = mapped_column(Text)
    search_text: Mapped[str | None] = mapped_column(Text, deferred=True)
    search_pieces: Mapped[list[str] | None] = mapped_column(ARRAY(Text), deferred=True)
    search_version: Mapped[int | None] = mapped_column(Integer)
    category: Mapped[str | None] = mapped_column(Text)
    image_url: Mapped[str | None] = mapped_column(Text)
    is_active: Mapped[bool] = mapped_column(Boolean, server_default="true")
    version: Mapped[int] = mapped_column(Integer, server_default="1")
    revision: Mapped[int] = mapped_column(BigInteger, server_default="1")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (
        CheckConstraint("stock_quantity >= 0", name="ck_products_stock_quantity"),
        Index("ix_products_is_active_category", "is_active", "category"),
        Index("uq_products_sku_key", "sku_key", unique=True),
        # One for each order of the list. `id` makes the order complete, so that the index alone has the ids of a page.
        Index("ix_products_active_created_at", "created_at", "id", postgresql_where=IS_ACTIVE),
        Index("ix_products_active_price", "price", "id", postgresql_where=IS_ACTIVE),
        Index(
            "ix_products_active_name",
            "name",
            "id",
            # Not collate(): `alembic check` would compare it with the bare column that it reads from the database.
            postgresql_ops={"name": f'COLLATE "{NAME_COLLATION}"'},
            postgresql_where=IS_ACTIVE,
        ),
        Index("ix_products_search_pieces", "search_pieces", postgresql_using="gin"),
        Index("ix_products_unindexed", "id", postgresql_where=text("search_version IS DISTINCT FROM version")),
    )

    @validates("sku")
    def _update_key(self, _: str, sku: str) -> str:
        self.sku_key = normal_sku(sku)
        return sku

    @staticmethod
    def next_id(session: Session) -> int:
        return session.execute(select(func.nextval(func.pg_get_serial_sequence("products", "id")))).scalar_one()

    @classmethod
    def with_sku(cls, sku: str, excluded_id: int | None = None) -> Select[tuple[Self]]:
        """The products with this normalized SKU, without the one with excluded_id."""
        return select(cls).where(or_(cls.sku_key == sku, cls.sku == sku), cls.id.is_distinct_from(excluded_id))

    @classmethod
    def generate_sku(cls, session: Session, product_id: int) -> str:
        """A free SKU for a product that has none."""
        for number in count(1):
            sku = f"P-{product_id}" if number == 1 else f"P-{product_id}-{number}"
            if session.scalar(cls.with_sku(sku, excluded_id=product_id)) is None:
                break
        return sku

    @classmethod
    def new(cls, **fields: Any) -> Self:
        product = cls(version=1, **fields)
        product.index()
        return product

    def edit(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self.version += 1
        self.revision += 1
        self.updated_at = func.now()
        self.search_version = self.version
        if changes.keys() & {"name", "sku", "category", "description"}:
            self.index()

    def index(self) -> None:
        """Fill the search columns from the present texts."""
        for name, value in search_columns(self.name, self.sku, self.category, self.description).items():
            setattr(self, name, value)
        self.search_version = self.version


class StockMovement(Base):
    """An entry of the stock ledger: a product's stock is the sum of its movements."""

    __tablename__ = "stock_movements"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id"), index=True)
    delta: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(Text)
    reservation_id: Mapped[UUID | None]
    moved_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (CheckConstraint("reason IN ('reservation', 'release', 'edit')", name="ck_movements_reason"),)


class Reservation(Base):
    """open → committed (by its order), open or committed → released (final)."""

    __tablename__ = "reservations"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (
        CheckConstraint("state IN ('open', 'committed', 'released')", name="ck_reservations_state"),
        Index("ix_reservations_open", "created_at", postgresql_where=text("state = 'open'")),
    )


class ReservationLine(Base):
    """A line of a reservation, with the product's name and price at that time. The order takes them over."""

    __tablename__ = "reservation_lines"

    reservation_id: Mapped[UUID] = mapped_column(ForeignKey("reservations.id"), primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id"), primary_key=True)
    quantity: Mapped[int] = mapped_column(Integer)
    product_name: Mapped[str] = mapped_column(Text)
    product_price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
