"""Checks and reserves stock."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from contracts.products import InsufficientStock, PriceChanged, ProductNotFound, ReservationReleased
from contracts.types import JsonObject
from nameko_reliable.database import WorkerDatabase
from services.products_models import Product, Reservation, ReservationLine
from services.products_statements import RESERVE


def check_lines(session: Session, lines: list[JsonObject]) -> list[JsonObject]:
    """The answer of `check_stock`. Raises ProductNotFound."""
    wanted = {line["product_id"]: line["quantity"] for line in lines}
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


def reserve(db: WorkerDatabase, request: JsonObject) -> tuple[JsonObject, Sequence[Row[Any]]]:
    """(the answer of `reserve_stock`, the changed products). request: as contracts.products.ReservationRequest.

    Raises ProductNotFound, PriceChanged, InsufficientStock, ReservationReleased.
    """
    reservation_id, lines = request["reservation_id"], request["lines"]
    names = ("product_id", "quantity", "unit_price")
    product_ids, quantities, unit_prices = ([line[name] for line in lines] for name in names)
    rows = db.execute(
        RESERVE,
        reservation_id=reservation_id,
        product_ids=product_ids,
        quantities=quantities,
        unit_prices=unit_prices,
    )
    if rows[0].is_reserved:
        return _reservation_view(reservation_id, [(row.id, row.name, row.price, row.quantity) for row in rows]), rows
    with db.transaction() as session:
        # Checked first: a call with the same id may have taken the stock that is missing now.
        if session.get(Reservation, reservation_id) is None:
            prices = dict(zip(product_ids, unit_prices, strict=True))
            for row in rows:
                check_line(row, prices[row.id])
        return _earlier_answer(session, reservation_id), []


def check_line(row: Row[Any], expected_price: Decimal | None) -> None:
    """Raises ProductNotFound, PriceChanged or InsufficientStock, the first that applies.

    row: of RESERVE, for one line. expected_price: the price that the customer saw, None for any.
    """
    if not row.is_active:
        raise ProductNotFound(row.id)
    if expected_price not in (None, row.price):
        raise PriceChanged(row.id, expected_price, row.price)
    if row.quantity > row.available:
        raise InsufficientStock(row.id, row.quantity, row.available)


def _earlier_answer(session: Session, reservation_id: UUID) -> JsonObject:
    if session.get_one(Reservation, reservation_id).state == "released":
        raise ReservationReleased(reservation_id)
    line = ReservationLine
    lines = session.execute(
        select(line.product_id, line.product_name, line.product_price, line.quantity)
        .where(line.reservation_id == reservation_id)
        .order_by(line.product_id)
    ).all()
    return _reservation_view(reservation_id, lines)


def _reservation_view(reservation_id: UUID, lines: Iterable[Iterable[Any]]) -> JsonObject:
    """lines: (product_id, name, price, quantity) each."""
    names = ("product_id", "product_name", "product_price", "quantity")
    return {
        "reservation_id": str(reservation_id),
        "lines": [
            dict(zip(names, (product_id, name, str(price), quantity), strict=True))
            for product_id, name, price, quantity in lines
        ],
    }
