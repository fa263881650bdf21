"""The catalogue: products found, added and edited, each in the caller's transaction."""

from contextlib import contextmanager

from sqlalchemy import collate, func, select, text
from sqlalchemy.exc import IntegrityError

from contracts.names import normal_text
from contracts.products import InsufficientStock, ProductNotFound, SkuTaken, StaleVersion
from contracts.types import MAX_INT, InvalidInput, Taken, load_id
from services.products_models import NAME_COLLATION, Product, StockMovement
from services.products_search import search_conditions

# For a word that many products have, the planner would scan the whole table: it underestimates the cost of reading the
# pieces of each row (with 100,000 rows 0.5 s, by the index 0.1 s).
FORCE_INDEX = text("SET LOCAL enable_seqscan = off")


def search_products(session, query):
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
    total = session.scalar(select(func.count()).select_from(matching.subquery()))
    return total, session.scalars(matching.order_by(*order).limit(query["limit"]).offset(query["offset"]))


def add_product(session, fields):
    """The new product. fields: as contracts.products.ProductRequest. Raises SkuTaken."""
    if fields["sku"] is None:
        fields["id"] = Product.next_id(session)
        fields["sku"] = Product.generate_sku(session, fields["id"])
    product = Product.new(**fields)
    with _unique_sku(session, fields["sku"]):
        session.add(product)
    session.add(StockMovement(product_id=product.id, delta=product.stock_quantity, reason="edit"))
    return product


def edit_product(session, product_id, version, changes):
    """The product, with the changes. version: the one that was edited, None for any.

    Raises ProductNotFound, StaleVersion, SkuTaken, InvalidInput.
    """
    if not isinstance(version, int | None):
        raise InvalidInput({"version": ["Not a valid integer."]})
    product = _locked(session, product_id)
    if version is not None and version != product.version:
        raise StaleVersion(version, product.version)
    return _save(session, product, changes)


def edit_stock(session, product_id, change):
    """The product, with the stock. change: as contracts.products.StockChange. Raises as `set_stock`."""
    product = _locked(session, product_id)
    quantity = change.get("stock_quantity", product.stock_quantity + change.get("delta", 0))
    if quantity < 0:
        raise InsufficientStock(product.id, -change["delta"], product.stock_quantity)
    if quantity > MAX_INT:
        raise InvalidInput({"delta": [f"The stock would exceed {MAX_INT}."]})
    return _save(session, product, {"stock_quantity": quantity})


def _locked(session, product_id):
    product = session.get(Product, load_id(product_id, "product_id"), with_for_update=True)
    if product is None:
        raise ProductNotFound(product_id)
    return product


def _save(session, product, changes):
    delta = changes.get("stock_quantity", product.stock_quantity) - product.stock_quantity
    if delta:
        session.add(StockMovement(product_id=product.id, delta=delta, reason="edit"))
    if changes.get("sku", product.sku) is None:
        changes["sku"] = Product.generate_sku(session, product.id)
    with _unique_sku(session, changes.get("sku"), excluded_id=product.id):
        product.edit(**changes)
    return product


@contextmanager
def _unique_sku(session, sku, excluded_id=None):
    """Flushes the changes of the block. Raises SkuTaken, or Taken when the other product has just given the SKU up."""
    try:
        with session.begin_nested():
            yield
    except IntegrityError as error:
        holder = session.scalar(Product.with_sku(sku, excluded_id=excluded_id))
        raise Taken("sku") if holder is None else SkuTaken(holder.id, holder.name, holder.is_active) from error
