"""The catalogue: finds, adds and edits products, in the caller's transaction."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import collate, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from contracts.names import normal_text
from contracts.products import InsufficientStock, ProductNotFound, SkuTaken, StaleVersion
from contracts.types import MAX_INT, InvalidInput, JsonObject, Taken, load_id
from services.products_models import NAME_COLLATION, Product, StockMovement
from services.products_search import search_conditions

# The planner scans the whole table for a word that many products have, because it underestimates the cost of reading
# the pieces of each row. With 100,000 rows a scan takes 0.5 s, the index 0.1 s.
FORCE_INDEX = text("SET LOCAL enable_seqscan = off")


def search_products(session: Session, query: Mapping[str, Any]) -> tuple[int, Iterable[Product]]:
    """(total, the products of the page). query: as contracts.products.ProductQuery."""
    matching = select(Product).where(Product.is_active == query["is_active"])
    if query["category"] is not None:
        matching = matching.where(Product.category == normal_text(query["category"]))
    if query["name"]:
        matching = matching.where(*search_conditions(Product, query["name"]))
    key = getattr(Product, query["sort_by"].removeprefix("-"))
    if key is Product.name:
        key = collate(key, NAME_COLLATION)
    order = (key.desc(), Product.id.desc()) if query["sort_by"].startswith("-") else (key, Product.id)
    if query["name"]:
        session.execute(FORCE_INDEX)
    total = session.execute(select(func.count()).select_from(matching.subquery())).scalar_one()
    return total, session.scalars(matching.order_by(*order).limit(query["limit"]).offset(query["offset"]))


def add_product(session: Session, fields: JsonObject) -> Product:
    """The new product. fields: as contracts.products.ProductRequest. Raises SkuTaken."""
    if fields["sku"] is None:
        fields["id"] = Product.next_id(session)
        fields["sku"] = Product.generate_sku(session, fields["id"])
    product = Product.new(**fields)
    with _unique_sku(session, fields["sku"]):
        session.add(product)
    session.add(StockMovement(product_id=product.id, delta=product.stock_quantity, reason="edit"))
    return product


def edit_product(session: Session, product_id: int, version: int | None, changes: JsonObject) -> Product:
    """The changed product. version: the version that the caller edited, None for any.

    Raises ProductNotFound, StaleVersion, SkuTaken, InvalidInput.
    """
    if not isinstance(version, int | None):
        raise InvalidInput({"version": ["Not a valid integer."]})
    product = _locked(session, product_id)
    if version is not None and version != product.version:
        raise StaleVersion(version, product.version)
    return _save(session, product, changes)


def edit_stock(session: Session, product_id: int, change: JsonObject) -> Product:
    """The changed product. change: as contracts.products.StockChange. Raises as `set_stock`."""
    product = _locked(session, product_id)
    quantity = change.get("stock_quantity", product.stock_quantity + change.get("delta", 0))
    if quantity < 0:
        raise InsufficientStock(product.id, -change["delta"], product.stock_quantity)
    if quantity > MAX_INT:
        raise InvalidInput({"delta": [f"The stock would exceed {MAX_INT}."]})
    return _save(session, product, {"stock_quantity": quantity})


def _locked(session: Session, product_id: int) -> Product:
    product = session.get(Product, load_id(product_id, "product_id"), with_for_update=True)
    if product is None:
        raise ProductNotFound(product_id)
    return product


def _save(session: Session, product: Product, changes: JsonObject) -> Product:
    delta = changes.get("stock_quantity", product.stock_quantity) - product.stock_quantity
    if delta:
        session.add(StockMovement(product_id=product.id, delta=delta, reason="edit"))
    if changes.get("sku", product.sku) is None:
        changes["sku"] = Product.generate_sku(session, product.id)
    with _unique_sku(session, changes.get("sku", product.sku), excluded_id=product.id):
        product.edit(**changes)
    return product


@contextmanager
def _unique_sku(session: Session, sku: str, excluded_id: int | None = None) -> Iterator[None]:
    """Flush the changes of the block. Raises SkuTaken, or Taken if the other product has just lost the SKU."""
    try:
        with session.begin_nested():
            yield
    except IntegrityError as error:
        holder = session.scalar(Product.with_sku(sku, excluded_id=excluded_id))
        raise Taken("sku") if holder is None else SkuTaken(holder.id, holder.name, holder.is_active) from error
