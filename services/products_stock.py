"""Checks and reserves stock, in the caller's transaction."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from contracts.products import InsufficientStock, PriceChanged, ProductNotFound, ReservationReleased
from contracts.types import JsonObject
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


def reserve(session: Session, request: JsonObject) -> tuple[JsonObject, Sequence[Row[Any]]]:
    """(the answer of `reserve_stock`, the changed products). request: as contracts.products.ReservationRequest.

    Raises ProductNotFound, PriceChanged, InsufficientStock, ReservationReleased. The caller must then roll back.
    """
    prices = {line["product_id"]: line["unit_price"] for line in request["lines"]}
    rows = session.execute(
        RESERVE,
        {
            "reservation_id": request["reservation_id"],
            "product_ids": list(prices),
            "quantities": [line["quantity"] for line in request["lines"]],
        },
    ).all()
    if not rows[0].claimed:
        return _earlier_answer(session, request["reservation_id"]), []
    for row in rows:
        check_reserved(row, prices[row.id])
    lines = [(row.id, row.name, row.price, row.quantity) for row in rows]
    return _reservation_view(request["reservation_id"], lines), rows


def check_reserved(row: Row[Any], expected_price: Decimal | None) -> None:
    """Raises ProductNotFound, PriceChanged or InsufficientStock, the first that applies.

    row: a line's, of RESERVE. expected_price: that the customer saw, None for any.
    """
    if not row.is_active:
        raise ProductNotFound(row.id)
    if expected_price not in (None, row.price):
        raise PriceChanged(row.id, expected_price, row.price)
    if row.revision is None:
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
