from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from flask import g, request
from marshmallow import ValidationError

from contracts.orders import (
    IdempotencyKey,
    IllegalTransition,
    KeyReused,
    OrderNotFound,
    OrderRequest,
    OrderView,
    RequestInFlight,
    StatusChange,
    TooManyOpenOrders,
)
from contracts.products import InsufficientStock, PriceChanged, ProductNotFound
from contracts.types import InvalidInput, JsonObject, NotAllowed
from gateway.api import Blueprint
from gateway.auth import admin_when, owner_or_admin, user
from gateway.paging import PAGE_HEADERS, page_headers
from gateway.schemas import OrderQuery

blp = Blueprint("orders", __name__, description="Orders")

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": IdempotencyKey.pattern},
    "description": "A repeat with the same key and body returns the first order.",
}


@blp.route("/orders", methods=["POST"])
@user
@blp.body(OrderRequest())
@blp.response(201, OrderView, headers=["Location"])
@blp.request_header(IDEMPOTENCY_KEY)
@blp.problems(ProductNotFound, InsufficientStock, PriceChanged, TooManyOpenOrders, RequestInFlight, KeyReused)
def create_order(order: JsonObject) -> tuple[JsonObject, int, dict[str, str]]:
    """Place an order. The stock of all its lines is reserved, or none."""
    idempotency_key = _idempotency_key()
    with _dropping_products(order["items"]):
        created = g.shop.orders.create_order(
            user_id=g.caller.user_id,
            user_email=g.caller.email,
            email_verified=g.caller.email_verified,
            items=order["items"],
            idempotency_key=idempotency_key,
        )
    return created, 201, {"Location": f"/orders/{created['id']}"}


@blp.route("/orders")
@user
@admin_when("all", "true")
@blp.arguments(OrderQuery, location="query")
@blp.response(200, OrderView(many=True), headers=PAGE_HEADERS)
def list_orders(query: JsonObject) -> tuple[list[JsonObject], int, dict[str, str]]:
    """The caller's orders, newest first; with all=true those of all customers.

    q: a part of the customer's address, or an order's id. from, to: created at `from` or later and before `to`. A
    bare date covers the whole day.
    """
    user_id = None if query.pop("all") else g.caller.user_id
    page = g.shop.orders.list_orders(user_id=user_id, **query)
    return page["orders"], 200, page_headers(query, page["total"])


@blp.route("/orders/<id:order_id>")
@owner_or_admin
@blp.response(200, OrderView)
@blp.problems(OrderNotFound)
def get_order(order_id: int) -> JsonObject:
    """One order, for its customer and for admins."""
    return g.shop.orders.get_order(order_id=order_id, user_id=g.caller.user_id_filter)


@blp.route("/orders/<id:order_id>/status", methods=["PATCH"])
@owner_or_admin
@blp.body(StatusChange())
@blp.response(200, OrderView)
@blp.problems(OrderNotFound, NotAllowed, IllegalTransition)
def update_status(change: JsonObject, order_id: int) -> JsonObject:
    """Change the status of an order. Its customer may only cancel it."""
    order = g.shop.orders.update_status(
        order_id=order_id,
        status=change["status"],
        user_id=g.caller.user_id_filter,
        email_verified=g.caller.email_verified,
    )
    g.cache.drop(item["product_id"] for item in order["items"])
    return order


def _idempotency_key() -> str:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return str(uuid4())
    try:
        return IdempotencyKey().deserialize(key)
    except ValidationError as error:
        raise InvalidInput({"Idempotency-Key": error.messages}) from None


@contextmanager
def _dropping_products(items: Any) -> Iterator[None]:
    """Drop these products from the cache after the call, also when it fails: their stock may differ from the cache.

    items: not validated.
    """
    try:
        yield
    finally:
        lines = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        g.cache.drop(line["product_id"] for line in lines if isinstance(line.get("product_id"), int))
