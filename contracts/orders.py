"""The wire format of orders: its events, errors, requests and answers."""

import re
from dataclasses import dataclass
from datetime import UTC
from decimal import Decimal
from typing import Any
from uuid import UUID

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from contracts.types import (
    MAX_BIGINT,
    MAX_LINES,
    MAX_QUANTITY,
    Conflict,
    Data,
    Email,
    Id,
    Limit,
    Line,
    Money,
    NotFound,
    PageQuery,
    StrictBoolean,
    Time,
    Unavailable,
    View,
)
from nameko_reliable.messages import Event

# OrderStatusUpdated.reason when the shop cancels an order that stayed pending for too long.
NOT_CONFIRMED = "not-confirmed"
ORDER_STATUSES = ("pending", "confirmed", "shipped", "delivered", "cancelled")


class OrderNotFound(NotFound):
    def __init__(self, order_id: int | str) -> None:
        super().__init__(order_id)
        self.order_id = int(order_id)


class TooManyOpenOrders(Conflict):
    """The order would exceed the account's limit of open orders, or of units in them.

    An order is open until it is shipped or cancelled. The limits are higher once the account's address is proven.
    """

    def __init__(
        self,
        open_orders: int | str,
        open_units: int | str,
        requested_units: int | str,
        most_orders: int | str,
        most_units: int | str,
    ) -> None:
        super().__init__(open_orders, open_units, requested_units, most_orders, most_units)
        self.open_orders, self.open_units = int(open_orders), int(open_units)
        self.requested_units = int(requested_units)
        self.most_orders, self.most_units = int(most_orders), int(most_units)


class IllegalTransition(Conflict):
    def __init__(self, old_status: str, new_status: str) -> None:
        super().__init__(old_status, new_status)
        self.old_status, self.new_status = old_status, new_status


class RequestInFlight(Conflict):
    """The first request with this idempotency key has not finished yet."""

    def __init__(self, retry_after_seconds: int | str) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = int(retry_after_seconds)


class KeyReused(Conflict):
    """The idempotency key belongs to a request with another body."""


class ProductsUnavailable(Unavailable):
    pass


class ProductsTimeout(Unavailable):
    outcome = "timeout"


@dataclass(frozen=True, kw_only=True)
class OrderLine:
    product_id: int
    product_name: str
    product_price: Decimal
    quantity: int
    subtotal: Decimal


@dataclass(frozen=True, kw_only=True)
class OrderEvent(Event):
    """sequence: 1 for an order's first event, one more for each that follows.

    email_verified: whether the customer's address was proven at their last call about the order. The default is for
    events that notifications stored before 0.1.0, which lack it.
    """

    source = "orders"

    order_id: int
    sequence: int
    user_id: int
    user_email: str
    email_verified: bool = False
    status: str
    items: tuple[OrderLine, ...]
    total_amount: Decimal
    reservation_id: UUID


@dataclass(frozen=True, kw_only=True)
class OrderCreated(OrderEvent):
    name = "order.created"
    subscribers = (("notifications", "confirm_order"),)
    retired_subscribers = (("products", "commit_reservation"),)


@dataclass(frozen=True, kw_only=True)
class OrderStatusUpdated(OrderEvent):
    """reason: why the shop itself changed the status. None when a person did."""

    name = "order.status.updated"
    subscribers = (("products", "return_cancelled_stock"), ("notifications", "tell_status"))

    old_status: str
    new_status: str
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class OrderAbandoned(Event):
    """The reservation will never become an order."""

    source = "orders"
    name = "order.abandoned"
    subscribers = (("products", "release_abandoned_stock"),)

    reservation_id: UUID


class OrderItemRequest(Schema):
    """unit_price: the price that the customer saw. The order is refused if the price has changed since."""

    product_id = Id(required=True)
    quantity = fields.Integer(strict=True, required=True, validate=validate.Range(1, MAX_QUANTITY))
    unit_price = Money()


class OrderRequest(Schema):
    items = fields.List(fields.Nested(OrderItemRequest), required=True, validate=validate.Length(1, MAX_LINES))

    @validates_schema
    def lines_of_one_product_agree(self, data: dict[str, Any], **kwargs: Any) -> None:
        """Lines of one product are merged: they must have one price, and a sum within MAX_QUANTITY."""
        totals: dict[int, int] = {}
        prices: dict[int, Decimal] = {}
        for line in data["items"]:
            product_id = line["product_id"]
            totals[product_id] = totals.get(product_id, 0) + line["quantity"]
            if totals[product_id] > MAX_QUANTITY:
                raise ValidationError(f"More than {MAX_QUANTITY} of product {product_id} in all.", "items")
            if "unit_price" in line and prices.setdefault(product_id, line["unit_price"]) != line["unit_price"]:
                raise ValidationError(f"Two prices for product {product_id}.", "items")


class StatusChange(Schema):
    status = fields.String(required=True, validate=validate.OneOf(ORDER_STATUSES))


class OrderStep(StatusChange):
    """A StatusChange with whether the caller's address is proven."""

    email_verified = StrictBoolean(load_default=False)


class OrderQuery(PageQuery):
    """q: a part of the customer's address, or an order's id. created_from is included, created_to is not."""

    limit = Limit(100, default=100)
    skip = fields.Integer(validate=validate.Range(0, MAX_BIGINT), metadata={"deprecated": True})
    status = fields.String(load_default=None, allow_none=True, validate=validate.OneOf(ORDER_STATUSES))
    q = Line(load_default=None, allow_none=True, validate=validate.Length(max=254))
    created_from = fields.AwareDateTime(load_default=None, allow_none=True, default_timezone=UTC)
    created_to = fields.AwareDateTime(load_default=None, allow_none=True, default_timezone=UTC)


class SummaryQuery(Schema):
    days = fields.Integer(load_default=30, validate=validate.Range(1, 90))


class IdempotencyKey(fields.String):
    """1 to 255 printable ASCII characters, without outer spaces: HTTP strips them from a header's value."""

    pattern = r"^[!-~]([ -~]{0,253}[!-~])?$"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        key = super()._deserialize(value, attr, data, **kwargs)
        if not re.fullmatch(self.pattern, key):
            raise ValidationError("Must be 1 to 255 printable ASCII characters, without spaces around them.")
        return key


class OrderPlacement(OrderRequest):
    """An OrderRequest with its customer and its key, as the gateway sends it."""

    user_id = Id(required=True)
    user_email = Email(required=True)
    email_verified = StrictBoolean(load_default=False)
    idempotency_key = IdempotencyKey(required=True)


class OrderItemView(View):
    id = fields.Integer()
    order_id = fields.Integer()
    product_id = fields.Integer()
    product_name = fields.String()
    product_price = Money()
    quantity = fields.Integer()
    subtotal = Money()
    created_at = Time()


class OrderStepView(View):
    status = fields.String(validate=validate.OneOf(ORDER_STATUSES))
    at = Time()
    by = fields.String()


class OrderView(View):
    id = fields.Integer()
    user_id = fields.Integer()
    user_email = fields.String(metadata={"format": "email"})
    status = fields.String(validate=validate.OneOf(ORDER_STATUSES))
    total_amount = Money()
    created_at = Time()
    updated_at = Time()
    items = fields.List(fields.Nested(OrderItemView))
    history = fields.List(fields.Nested(OrderStepView))


def Revenue() -> fields.String:
    """A sum of money, which may exceed MAX_MONEY."""
    return fields.String(metadata={"format": "decimal", "pattern": r"^[0-9]+\.[0-9]{2}$"})


class SalesView(View):
    orders = fields.Integer()
    revenue = Revenue()


class DaySalesView(SalesView):
    date = fields.String(metadata={"format": "date"})


OrderCountView = View.from_dict({status: fields.Integer() for status in ORDER_STATUSES}, name="OrderCountView")


class OrderSummaryView(View):
    today = fields.Nested(SalesView)
    by_status = fields.Nested(OrderCountView)
    daily = fields.List(fields.Nested(DaySalesView))
