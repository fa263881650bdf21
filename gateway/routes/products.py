import re
from collections.abc import Callable
from typing import Any

from flask import Response, g, json, request

from contracts.products import (
    CategoryView,
    InsufficientStock,
    ProductChanges,
    ProductNotFound,
    ProductPageView,
    ProductReplacement,
    ProductRequest,
    ProductView,
    SkuTaken,
    StaleVersion,
    StockChange,
)
from contracts.types import MAX_INT, JsonObject
from gateway.api import Blueprint
from gateway.auth import admin, admin_when, public
from gateway.cache import CachedResponse, key_of
from gateway.errors import MalformedRequest
from gateway.paging import PAGE_HEADERS, page_headers
from gateway.schemas import ProductQuery

blp = Blueprint("products", __name__, description="The catalogue")

PRODUCT_FIELDS = tuple(ProductView().fields)
ETAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
ETAGS = rf"{ETAG}(?:\s*,\s*{ETAG})*"
IF_MATCH = {
    "name": "If-Match",
    "schema": {"type": "string", "pattern": rf"^(?:\*|{ETAGS})$"},
    "example": '"3-0123456789abcdef"',
    "description": "the ETag that was read",
}
IF_NONE_MATCH = {"name": "If-None-Match", "schema": {"type": "string"}}


@blp.route("/products")
@public
@admin_when("is_active", "false")
@blp.arguments(ProductQuery, location="query")
@blp.response(200, ProductPageView, headers=["ETag", *PAGE_HEADERS])
@blp.alt_response(304, success=True, headers=["ETag", *PAGE_HEADERS])
@blp.request_header(IF_NONE_MATCH)
def list_products(query: JsonObject) -> Response:
    """A page of the catalogue.

    `name` searches words: each must be in the name, SKU, category or description. Accents and case are ignored.
    """

    def fill() -> CachedResponse:
        page = g.shop.products.list_products(**query)
        page["items"] = [public_fields(product) for product in page["items"]]
        return _cacheable(page, headers=page_headers(query, page["total"]))

    return _respond(fill, cached=query["is_active"])


@blp.route("/products/categories")
@public
@blp.response(200, CategoryView(many=True), headers=["ETag"])
@blp.alt_response(304, success=True, headers=["ETag"])
@blp.request_header(IF_NONE_MATCH)
def list_categories() -> Response:
    """The categories, each with the number of its products."""
    return _respond(lambda: _cacheable(g.shop.products.list_categories()))


@blp.route("/products/<id:product_id>")
@public
@blp.response(200, ProductView, headers=["ETag"])
@blp.alt_response(304, success=True, headers=["ETag"])
@blp.request_header(IF_NONE_MATCH)
@blp.problems(ProductNotFound)
def get_product(product_id: int) -> Response:
    """One product. An inactive one is shown only to admins."""
    by_admin = g.caller is not None and g.caller.is_admin

    def fill() -> CachedResponse:
        product = g.shop.products.get_product(product_id=product_id, include_inactive=by_admin)
        return _cacheable(public_fields(product), product["version"])

    return _respond(fill, product_id)


@blp.route("/products", methods=["POST"])
@admin
@blp.body(ProductRequest())
@blp.response(201, ProductView, headers=["ETag", "Location"])
@blp.problems(SkuTaken)
def create_product(product: JsonObject) -> tuple[Response, int, dict[str, str]]:
    """Add a product."""
    created = g.shop.products.create_product(**product)
    return _respond_edited(created), 201, {"Location": f"/products/{created['id']}"}


@blp.route("/products/<id:product_id>", methods=["PUT"])
@admin
@blp.body(ProductReplacement())
@blp.response(200, ProductView, headers=["ETag"])
@blp.request_header(IF_MATCH)
@blp.problems(ProductNotFound, SkuTaken, StaleVersion)
def replace_product(product: JsonObject, product_id: int) -> Response:
    """Replace a product. Its stock stays when it is not given."""
    version = _expected_version(product_id)
    return _respond_edited(g.shop.products.replace_product(product_id=product_id, version=version, **product))


@blp.route("/products/<id:product_id>", methods=["PATCH"])
@admin
@blp.body(ProductChanges(partial=True))
@blp.response(200, ProductView, headers=["ETag"])
@blp.request_header(IF_MATCH)
@blp.problems(ProductNotFound, SkuTaken, StaleVersion)
def update_product(changes: JsonObject, product_id: int) -> Response:
    """Change some fields of a product."""
    version = _expected_version(product_id)
    return _respond_edited(g.shop.products.update_product(product_id=product_id, version=version, **changes))


@blp.route("/products/<id:product_id>/stock", methods=["PATCH"])
@admin
@blp.body(StockChange())
@blp.response(200, ProductView, headers=["ETag"])
@blp.problems(ProductNotFound, InsufficientStock)
def set_stock(change: JsonObject, product_id: int) -> Response:
    """Set the stock, or change it by `delta`."""
    return _respond_edited(g.shop.products.set_stock(product_id=product_id, **change))


@blp.route("/products/<id:product_id>", methods=["DELETE"])
@admin
@blp.response(204)
@blp.problems(ProductNotFound)
def delete_product(product_id: int) -> Response:
    """Remove a product from the catalogue. Orders keep their copy of its data."""
    g.cache.drop([g.shop.products.delete_product(product_id=product_id)["id"]])
    return Response(status=204)


def public_fields(record: JsonObject) -> JsonObject:
    """The public fields of a ProductRecord."""
    return {name: record[name] for name in PRODUCT_FIELDS}


def _cacheable(result: Any, version: int = 0, headers: dict[str, str] | None = None) -> CachedResponse:
    return CachedResponse(json.dumps(result).encode(), version, request.environ["route"], headers)


def _respond(fill: Callable[[], CachedResponse], product_id: int | None = None, cached: bool = True) -> Response:
    """Public reads come from the cache; admins read the current data."""
    if cached and not (g.caller is not None and g.caller.is_admin):
        response = g.cache.fetch(key_of(request.environ), fill, product_id)
    else:
        response = fill()
    status, headers, body = response.respond(request.headers.get("If-None-Match"))
    return Response(body, status, headers)


def _respond_edited(product: JsonObject) -> Response:
    """The edited product. It is dropped from the cache first, so that reads after this answer are not older."""
    g.cache.drop([product["id"]])
    response = _cacheable(public_fields(product), product["version"])
    return Response(response.body, headers={"ETag": response.etag}, mimetype="application/json")


def _expected_version(product_id: int) -> int | None:
    """The version that If-Match names; None when it accepts any. Raises MalformedRequest."""
    header = request.headers.get("If-Match", "*").strip()
    if header == "*":
        return None
    if not re.fullmatch(ETAGS, header):
        raise MalformedRequest('If-Match must be a list of tags like "3-0123456789abcdef", or *.')
    # A tag that is not ours becomes 0, which is no product's version.
    versions = {int(number or 0) for number in re.findall(r'"(?:([0-9]{1,9})-)?[^"]*"', header)}
    versions = {version for version in versions if version <= MAX_INT}
    if len(versions) > 1:
        current = g.shop.products.get_product(product_id=product_id, include_inactive=True)["version"]
        if current in versions:
            return current
    return min(versions)
