"""The wire format of products: its events, errors, requests and answers."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from contracts.names import normal_sku
from contracts.types import (
    CONTROLS,
    MAX_INT,
    MAX_LINES,
    MAX_QUANTITY,
    Conflict,
    Data,
    Description,
    Id,
    Line,
    Money,
    Name,
    NotFound,
    PageQuery,
    StrictBoolean,
    Taken,
    Time,
    View,
)
from nameko_reliable.messages import Event

MAX_SKU = 64
PRODUCT_SORT_KEYS = tuple(sign + key for key in ("price", "name", "created_at") for sign in ("", "-"))
IMAGE_URL = rf"https://[^\s/?#\\{CONTROLS}]+[^\s{CONTROLS}]*|(?!//)(?![^/?#]*:)[^\s\\{CONTROLS}]+"


class ProductNotFound(NotFound):
    def __init__(self, product_id: int | str) -> None:
        super().__init__(product_id)
        self.product_id = int(product_id)


class SkuTaken(Taken):
    """product: {id, name, is_active} of the product that has the SKU. For admins only: it may be inactive."""

    def __init__(self, product_id: int | str, name: str, is_active: bool | str) -> None:
        super().__init__("sku")
        self.args = (product_id, name, is_active)
        self.product = {"id": int(product_id), "name": name, "is_active": str(is_active) == "True"}


class InsufficientStock(Conflict):
    """Fewer units are available than were requested."""

    def __init__(self, product_id: int | str, requested: int | str, available: int | str) -> None:
        super().__init__(product_id, requested, available)
        self.product_id, self.requested, self.available = int(product_id), int(requested), int(available)


class PriceChanged(Conflict):
    """The price that the caller saw is not the current one."""

    def __init__(self, product_id: int | str, given: Decimal | str, current: Decimal | str) -> None:
        super().__init__(product_id, given, current)
        self.product_id, self.given, self.current = int(product_id), Decimal(given), Decimal(current)


class StaleVersion(Conflict):
    """The product was edited after the caller read it."""

    def __init__(self, given: int | str, current: int | str) -> None:
        super().__init__(given, current)
        self.given, self.current = int(given), int(current)


class ReservationReleased(Conflict):
    """The reservation was released, which is final."""

    def __init__(self, reservation_id: UUID | str) -> None:
        super().__init__(reservation_id)
        self.reservation_id = str(reservation_id)


@dataclass(frozen=True, kw_only=True)
class ProductChanged(Event):
    """revision: raised with each change of the product. An event with a lower one than the last seen is stale."""

    source = "products"
    name = "product.changed"

    id: int
    price: Decimal
    stock_quantity: int
    is_active: bool
    revision: int


class ImageUrl(Line):
    """An https URL, or one relative to the shop. No other scheme (`javascript:`), and no `//host`."""

    pattern = rf"^\s*(?:{IMAGE_URL})\s*$"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        url = super()._deserialize(value, attr, data, **kwargs)
        if not re.fullmatch(IMAGE_URL, url):
            raise ValidationError("Must be a relative or an https URL.")
        return url


class Sku(Name):
    normal_form = "NFKC"
    normal = staticmethod(normal_sku)


class ProductFields(Schema):
    """The fields of POST, PUT and PATCH alike: all but the stock. PUT without a SKU keeps the present one."""

    name = Name(200, required=True)
    description = Description(10_000, load_default=None, allow_none=True)
    price = Money(required=True)
    sku = Sku(MAX_SKU, allow_none=True, metadata={"description": "null: one that is made of the id"})
    category = Name(100, load_default=None, allow_none=True)
    image_url = ImageUrl(load_default=None, allow_none=True, validate=validate.Length(1, 500))


def Stock(**kwargs: Any) -> fields.Integer:
    return fields.Integer(strict=True, validate=validate.Range(0, MAX_INT), **kwargs)


class ProductRequest(ProductFields):
    sku = Sku(MAX_SKU, load_default=None, allow_none=True, metadata={"description": "null: one that is made of the id"})
    stock_quantity = Stock(required=True)


class ProductReplacement(ProductFields):
    """Without a stock_quantity the stock stays as it is."""

    stock_quantity = Stock()


class ProductChanges(ProductFields):
    """For partial loading: absent fields keep their values."""

    stock_quantity = Stock()
    is_active = StrictBoolean()


class StockChange(Schema):
    class Meta:
        keywords = {"minProperties": 1, "maxProperties": 1}

    stock_quantity = Stock()
    delta = fields.Integer(strict=True, validate=validate.Range(-MAX_INT, MAX_INT))

    @validates_schema
    def exactly_one(self, data: dict[str, Any], **kwargs: Any) -> None:
        if len(data) != 1:
            raise ValidationError("Give either stock_quantity or delta.")


class ProductQuery(PageQuery):
    category = Line(load_default=None, allow_none=True, validate=validate.Length(max=100))
    name = Line(load_default=None, allow_none=True, validate=validate.Length(max=200))
    is_active = fields.Boolean(load_default=True)
    sort_by = fields.String(load_default="-created_at", validate=validate.OneOf(PRODUCT_SORT_KEYS))


class StockLine(Schema):
    product_id = Id(required=True)
    quantity = fields.Integer(strict=True, required=True, validate=validate.Range(1, MAX_QUANTITY))
    unit_price = Money(load_default=None, allow_none=True)


class StockLines(Schema):
    """lines: one for each product."""

    lines = fields.List(fields.Nested(StockLine), required=True, validate=validate.Length(1, MAX_LINES))

    @validates_schema
    def products_are_distinct(self, data: dict[str, Any], **kwargs: Any) -> None:
        if len({line["product_id"] for line in data["lines"]}) < len(data["lines"]):
            raise ValidationError("Two lines for one product.", "lines")


class ReservationId(Schema):
    reservation_id = fields.UUID(required=True)


class ReservationIds(Schema):
    reservation_ids = fields.List(fields.UUID(), required=True, validate=validate.Length(1, 500))


class ReservationRequest(StockLines, ReservationId):
    pass


class ProductView(View):
    id = fields.Integer()
    name = fields.String()
    description = fields.String(allow_none=True)
    price = Money()
    stock_quantity = fields.Integer()
    sku = fields.String()
    category = fields.String(allow_none=True)
    image_url = fields.String(allow_none=True)
    is_active = fields.Boolean()
    created_at = Time()
    updated_at = Time()


class ProductRecord(ProductView):
    """A ProductView with the version, from which the gateway makes the ETag, and the revision."""

    version = fields.Integer()
    revision = fields.Integer()


class ProductPageView(View):
    items = fields.List(fields.Nested(ProductView))
    total = fields.Integer()
    limit = fields.Integer()
    offset = fields.Integer()


class CategoryView(View):
    category = fields.String()
    count = fields.Integer()


class StockSummaryView(View):
    low_stock_threshold = fields.Integer()
    low = fields.Integer()
    products = fields.List(fields.Nested(ProductView))
