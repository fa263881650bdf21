"""The requests the services take, checked alike at the gateway and at the RPC.

Bounds are the HTTP API's. `load(schema, data)` returns the checked values or raises
`InvalidInput` with the sentences by field.
"""

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC
from decimal import Decimal
from typing import Any, Literal

from email_validator import EmailNotValidError, validate_email
from marshmallow import Schema, ValidationError, fields, post_load, validate, validates_schema

from contracts.errors import InvalidInput
from contracts.names import (
    FORMATS,
    fault_of,
    has_stacked_marks,
    is_visible,
    normal_sku,
    normal_text,
    normal_username,
)

# What a field is loaded from, as marshmallow passes it on.
Data = Mapping[str, Any] | None

MAX_BIGINT = 2**63 - 1
MAX_INT = 2**31 - 1
MAX_MONEY = Decimal("9999999999.99")
MAX_QUANTITY = 10_000
MAX_LINES = 100
MAX_PAGE = 10**12
MAX_USERNAME, MAX_SKU = 50, 64
MAX_PASSWORD = 128
ROLES = ("customer", "admin")
ORDER_STATUSES = ("pending", "confirmed", "shipped", "delivered", "cancelled")
NOTIFICATION_STATUSES = ("pending", "sent", "failed", "uncertain")
PRODUCT_SORT_KEYS = tuple(sign + key for key in ("price", "name", "created_at") for sign in ("", "-"))

# Also in the HTTP API's document, so without what ECMAScript's regular expressions lack.
CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
# ASCII alone: without SMTPUTF8, which few servers offer, no other address can be mailed.
# No encoded word (RFC 2047): mail programs and ours would read it as another address.
EMAIL = (
    r"(?!.*=\?)[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}"
    r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z0-9-]{2,63}"
)
# What a mail server takes has more rules, see NewEmail; these are the ones that a pattern can say.
NEW_EMAIL = (
    r"(?!.*=\?)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z0-9][A-Za-z0-9-]{0,61})?[A-Za-z]"
)
MONEY = r"[0-9]{1,10}(\.[0-9]{1,2})?"
IMAGE_URL = rf"https://[^\s/?#\\{CONTROLS}]+[^\s{CONTROLS}]*|(?!//)(?![^/?#]*:)[^\s\\{CONTROLS}]+"


def load(schema: Schema, data: Any) -> Any:
    """Check `data` against `schema`, an instance; raise InvalidInput where it doesn't fit."""
    try:
        return schema.load(data)
    except ValidationError as error:
        raise InvalidInput(error.normalized_messages()) from error


def load_id(value: Any, field: str = "id") -> int:
    """A row's id, or InvalidInput under the field's name."""
    try:
        return Id().deserialize(value)
    except ValidationError as error:
        raise InvalidInput({field: error.messages}) from error


class Text(fields.String):
    """A string without the characters PostgreSQL and mail headers can't hold: NUL, lone surrogates."""

    pattern: str | None = r"^[^\x00]*$"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if "\x00" in text or re.search("[\ud800-\udfff]", text):
            raise ValidationError("Not a valid string: it has a NUL or half a surrogate pair.")
        return text


class Line(Text):
    """One line of text: trimmed, and without control characters."""

    pattern: str | None = None

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        text = self._spelled(super()._deserialize(value, attr, data, **kwargs))
        # Not only once it is trimmed: the HTTP API's document can't say that what is blank doesn't count.
        self._validate(text)
        text = text.strip()
        if re.search(f"[{CONTROLS}]", text):
            raise ValidationError("Must be one line, without control characters.")
        return text

    def _spelled(self, text: str) -> str:
        return text


def normalizable(text: str, max_length: int) -> str:
    """The text, unless it can't have `max_length` characters once it is normalized, or takes long to normalize."""
    if len(text) > 4 * max_length:
        raise ValidationError(f"Longer than maximum length {max_length}.")
    if has_stacked_marks(text):
        raise ValidationError("Has more than 30 marks on one letter.")
    return text


def check_characters(text: str) -> str:
    if fault := fault_of(text):
        raise ValidationError(fault)
    return text


class Name(Line):
    """A Line that can be seen, normalized by `normal`; its length counts after that."""

    form: Literal["NFC", "NFKC"] = "NFC"
    normal = staticmethod(normal_text)

    def __init__(self, max_length: int, **kwargs: Any) -> None:
        super().__init__(validate=validate.Length(1, max_length), **kwargs)
        self.max_length = max_length

    def _spelled(self, text: str) -> str:
        return unicodedata.normalize(self.form, normalizable(text, self.max_length))

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        name = check_characters(self.normal(super()._deserialize(value, attr, data, **kwargs)))
        if not is_visible(name):
            raise ValidationError("Must have something to see: a letter, a digit or a symbol.")
        return name


class Username(Name):
    form = "NFKC"
    normal = staticmethod(normal_username)

    def __init__(self) -> None:
        super().__init__(MAX_USERNAME, required=True)


class Description(Text):
    """Lines of text, normalized."""

    pattern = rf"^[^\x00{FORMATS}]*$"

    def __init__(self, max_length: int, **kwargs: Any) -> None:
        super().__init__(validate=validate.Length(max=max_length), **kwargs)
        self.max_length = max_length

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        return check_characters(normal_text(normalizable(text, self.max_length)))


def fold_address(address: str) -> str:
    """Lower-cased if it is ASCII. Other letters fold to ASCII ones (U+212A to k): to an address of someone else."""
    return address.lower() if address.isascii() else address


class Email(Line):
    """An address, lower-cased. Its form alone is checked: one @, no white space, a dotted domain."""

    pattern = rf"^\s*{EMAIL}\s*$"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(validate=validate.Length(max=254), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        email = fold_address(super()._deserialize(value, attr, data, **kwargs))
        if not re.fullmatch(EMAIL, email):
            raise ValidationError("Not a valid email address.")
        return email


class NewEmail(Email):
    """The address of a new account: one that a mail server takes, as far as that shows without DNS.

    Accounts that are older may have others, so logins and orders don't ask for it.
    """

    pattern = rf"^\s*{NEW_EMAIL}\s*$"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        email = super()._deserialize(value, attr, data, **kwargs)
        try:
            # A test environment takes `.test`, as demos and tests do.
            validate_email(email, allow_smtputf8=False, check_deliverability=False, test_environment=True)
        except EmailNotValidError as error:
            raise ValidationError(f"Not a valid email address. {error}") from error
        return email


def normal_password(password: str) -> str:
    """The same characters for the same password, whatever the keyboard: NFKC, as NIST SP 800-63B 5.1.1.2 asks."""
    return unicodedata.normalize("NFKC", password)


class NewPassword(Text):
    """Any Unicode, normalized."""

    def __init__(self) -> None:
        super().__init__(required=True, validate=validate.Length(8, MAX_PASSWORD))

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        return normal_password(normalizable(text, MAX_PASSWORD))


class Money(fields.Field[Decimal]):
    """A decimal string with at most two places, "29.99"; never a JSON number, which is a float."""

    pattern = f"^{MONEY}$"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> Decimal:
        if not isinstance(value, str) or not re.fullmatch(MONEY, value):
            raise ValidationError('Must be a decimal string with two places, like "29.99".')
        return Decimal(value).quantize(Decimal("0.01"))

    def _serialize(self, value: Decimal | None, attr: str | None, obj: Any, **kwargs: Any) -> str:
        return str(value)


class StrictBoolean(fields.Boolean):
    """JSON's true and false alone: to marshmallow 1 and "yes" are true as well."""

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


def Id(**kwargs: Any) -> fields.Integer:
    return fields.Integer(strict=True, validate=validate.Range(1, MAX_BIGINT), **kwargs)


def Secret(**kwargs: Any) -> fields.String:
    """Only bounded, not checked: a wrong form is a wrong secret, and says no more."""
    return fields.String(validate=validate.Length(max=1000), **kwargs)


class UserRegistration(Schema):
    email = NewEmail(required=True)
    username = Username()
    password = NewPassword()


class Credentials(Schema):
    email = Secret(required=True)
    password = Secret(required=True)


class Client(Schema):
    """Where a request comes from, as the gateway passes it on."""

    client_address = Line(load_default=None, allow_none=True, validate=validate.Length(max=100))
    user_agent = Line(load_default=None, allow_none=True, validate=validate.Length(max=300))


class Login(Credentials, Client):
    pass


class SignInAnswer(Client):
    """What a sign-in provider sent the browser back with."""

    code = fields.String(required=True, validate=validate.Length(1, 4000))
    state = Secret(required=True)


class PasswordResetRequest(Schema):
    email = Email(required=True)


class PasswordReset(Schema):
    """token: of the mail's link."""

    token = Secret(required=True)
    password = NewPassword()


class AddressVerification(Schema):
    token = Secret(required=True)


class Profile(Schema):
    username = Username()


class PasswordChange(Schema):
    old_password = Secret(required=True)
    password = NewPassword()


class OwnPasswordChange(PasswordChange, Client):
    pass


class UserChanges(Schema):
    """What an admin changes of an account; what is absent stays."""

    role = fields.String(validate=validate.OneOf(ROLES))
    is_active = StrictBoolean()


class ImageUrl(Line):
    """https, or relative to the shop; nothing that runs (`javascript:`) or leads elsewhere (`//host`)."""

    pattern = rf"^\s*(?:{IMAGE_URL})\s*$"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        url = super()._deserialize(value, attr, data, **kwargs)
        if not re.fullmatch(IMAGE_URL, url):
            raise ValidationError("Must be a relative or an https URL.")
        return url


class Sku(Name):
    form = "NFKC"
    normal = staticmethod(normal_sku)


class ProductFields(Schema):
    """What PUT and PATCH share with POST: everything but the stock. Without a SKU, PUT leaves the one there is."""

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
    """stock_quantity is left as it is when absent."""

    stock_quantity = Stock()


class ProductChanges(ProductFields):
    """For partial loading: what is absent stays."""

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


class OrderItem(Schema):
    """unit_price: what the customer was shown; the order is refused when it no longer holds."""

    product_id = Id(required=True)
    quantity = fields.Integer(strict=True, required=True, validate=validate.Range(1, MAX_QUANTITY))
    unit_price = Money()


class OrderRequest(Schema):
    items = fields.List(fields.Nested(OrderItem), required=True, validate=validate.Length(1, MAX_LINES))

    @validates_schema
    def lines_of_one_product_agree(self, data: dict[str, Any], **kwargs: Any) -> None:
        """Lines of the same product become one, so they can't differ in price or exceed its bound."""
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
    """A StatusChange, and whether the address of its caller is proven."""

    email_verified = StrictBoolean(load_default=False)


class ReadMark(Schema):
    read = StrictBoolean(required=True)


def Limit(highest: int, default: int) -> fields.Integer:
    return fields.Integer(load_default=default, validate=validate.Range(1, highest))


def Offset() -> fields.Integer:
    return fields.Integer(load_default=0, validate=validate.Range(0, MAX_BIGINT))


class ParkedQuery(Schema):
    limit = Limit(2000, default=50)
    offset = Offset()


class ParkedSelection(Schema):
    """queue: where messages came from; reason: a part of theirs; null is any. left: of the answer before."""

    queue = fields.String(load_default=None, allow_none=True, validate=validate.Length(1, 255))
    reason = fields.String(load_default=None, allow_none=True, validate=validate.Length(1, 500))
    left = fields.Integer(load_default=None, allow_none=True, strict=True, validate=validate.Range(0, MAX_BIGINT))


class PageQuery(Schema):
    """Which part of a list: `limit` things from `offset` on, or from the beginning of `page`, which counts from 1.

    Loads to limit and offset. A subclass may go on taking older names of theirs.
    """

    limit = Limit(100, default=20)
    offset = Offset()
    page = fields.Integer(validate=validate.Range(1, MAX_PAGE))

    @validates_schema(pass_original=True)
    def one_name_for_each(self, data: dict[str, Any], original: Mapping[str, Any], **kwargs: Any) -> None:
        for names in (("offset", "skip", "page"), ("limit", "page_size")):
            given = [name for name in names if name in original]
            if len(given) > 1:
                raise ValidationError(f"Give either {' or '.join(given)}.", given[-1])

    @post_load
    def settle(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        data["limit"] = data.pop("page_size", data["limit"])
        data["offset"] = data.pop("skip", data["offset"])
        if "page" in data:
            data["offset"] = (data.pop("page") - 1) * data["limit"]
        return data


class UserQuery(PageQuery):
    """q: a part of the address or of the name."""

    q = Line(load_default=None, allow_none=True, validate=validate.Length(max=254))
    role = fields.String(load_default=None, allow_none=True, validate=validate.OneOf(ROLES))


class ProductQuery(PageQuery):
    category = Line(load_default=None, allow_none=True, validate=validate.Length(max=100))
    name = Line(load_default=None, allow_none=True, validate=validate.Length(max=200))
    is_active = fields.Boolean(load_default=True)
    sort_by = fields.String(load_default="-created_at", validate=validate.OneOf(PRODUCT_SORT_KEYS))


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


class NotificationQuery(PageQuery):
    """after_id: only those with a higher id, oldest first, for a client that catches up."""

    recipient = Line(load_default=None, allow_none=True, validate=validate.Length(max=254))
    status = fields.String(load_default=None, allow_none=True, validate=validate.OneOf(NOTIFICATION_STATUSES))
    order_id = fields.Integer(load_default=None, allow_none=True, validate=validate.Range(1, MAX_BIGINT))
    unread = fields.Boolean(load_default=None, allow_none=True)
    after_id = fields.Integer(load_default=None, allow_none=True, validate=validate.Range(0, MAX_BIGINT))
    page_size = fields.Integer(validate=validate.Range(1, 100), metadata={"deprecated": True})


class ReservationLine(Schema):
    product_id = Id(required=True)
    quantity = fields.Integer(strict=True, required=True, validate=validate.Range(1, MAX_QUANTITY))
    unit_price = Money(load_default=None, allow_none=True)


class StockLines(Schema):
    """lines: one for each product."""

    lines = fields.List(fields.Nested(ReservationLine), required=True, validate=validate.Length(1, MAX_LINES))

    @validates_schema
    def products_are_distinct(self, data: dict[str, Any], **kwargs: Any) -> None:
        if len({line["product_id"] for line in data["lines"]}) < len(data["lines"]):
            raise ValidationError("Two lines for one product.", "lines")


class ReservationId(Schema):
    reservation_id = fields.UUID(required=True)


class ReservationRequest(StockLines, ReservationId):
    pass


class OrderPlacement(OrderRequest):
    """An OrderRequest with who asks, as the gateway passes it on."""

    user_id = Id(required=True)
    user_email = Email(required=True)
    email_verified = StrictBoolean(load_default=False)
    idempotency_key = fields.String(required=True, validate=validate.Regexp(r"[\x20-\x7e]{1,255}\Z"))
