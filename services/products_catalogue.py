"""The catalogue: reads products, and adds and edits them in the caller's transaction."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from contracts.names import normal_text
from contracts.products import (
    InsufficientStock,
    ProductNotFound,
    ProductRecord,
    ProductView,
    SkuTaken,
    StaleVersion,
)
from contracts.types import MAX_INT, InvalidInput, JsonObject, Taken, load_id
from nameko_reliable.statements import Statement
from services.products_models import NAME_COLLATION, Product, StockMovement
from services.products_search import SEARCH, search_parameters
from services.reading import Execute, ViewTable

LOW_STOCK_THRESHOLD = 5
MAX_LOW_STOCK_SHOWN = 10

PRODUCTS = ViewTable("products", ProductRecord())
PUBLIC_PRODUCTS = ViewTable("products", ProductView())
COUNT_CATEGORIES = Statement(f"""
SELECT category, count(*) AS products FROM products WHERE is_active AND category IS NOT NULL
GROUP BY category ORDER BY category COLLATE "{NAME_COLLATION}"
""")  # noqa: S608
# Each has an index of active products, by which a page is found.
SORT_COLUMNS = {"price": "price", "name": f'name COLLATE "{NAME_COLLATION}"', "created_at": "created_at"}


def read_product(execute: Execute, product_id: int, include_inactive: bool) -> JsonObject:
    """Raises ProductNotFound."""
    products = PRODUCTS.find(execute, "WHERE id = %(id)s::bigint", id=load_id(product_id, "product_id"))
    if not products or not (products[0]["is_active"] or include_inactive):
        raise ProductNotFound(product_id)
    return products[0]


def read_products(execute: Execute, query: Mapping[str, Any]) -> tuple[int, list[JsonObject]]:
    """(total, the products of the page). query: as contracts.products.ProductQuery."""
    conditions = ["is_active" if query["is_active"] else "NOT is_active"]
    parameters: JsonObject = {}
    collected = ""
    if query["category"] is not None:
        conditions.append("category = %(category)s::text")
        parameters["category"] = normal_text(query["category"])
    if search := search_parameters(query["name"] or ""):
        conditions.append(SEARCH)
        parameters |= search
        collected = ", ".join(SORT_COLUMNS)
    column = SORT_COLUMNS[query["sort_by"].removeprefix("-")]
    order = f"{column} DESC, id DESC" if query["sort_by"].startswith("-") else f"{column}, id"
    return PRODUCTS.page(execute, conditions, order, query["limit"], query["offset"], collected=collected, **parameters)


def read_categories(execute: Execute) -> list[JsonObject]:
    """The answer of `list_categories`."""
    return [{"category": category, "count": count} for category, count in execute(COUNT_CATEGORIES)]


def read_low_stock(execute: Execute) -> JsonObject:
    """The answer of `summarize_stock`."""
    low, products = PUBLIC_PRODUCTS.page(
        execute,
        ["is_active", "stock_quantity <= %(threshold)s::bigint"],
        "stock_quantity, name, id",
        limit=MAX_LOW_STOCK_SHOWN,
        offset=0,
        # No index has the stock: each sale would have to update it.
        collected="stock_quantity, name",
        threshold=LOW_STOCK_THRESHOLD,
    )
    return {"low_stock_threshold": LOW_STOCK_THRESHOLD, "low": low, "products": products}


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
