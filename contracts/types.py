"""The bases of the contracts of all services: errors, fields, list queries and views.

The bounds are those of the HTTP API. `load(schema, data)` returns the checked values, or raises `InvalidInput` with a
list of sentences for each field.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal, cast
from uuid import UUID, uuid5

from marshmallow import Schema, ValidationError, fields, post_load, validate, validates_schema
from nameko.exceptions import deserialize_to_instance

import contracts.errors  # noqa: F401
import extensions.errors  # noqa: F401
from contracts.names import FORMATS, character_error, has_stacked_marks, is_visible, normal_text
from nameko_reliable.errors import (
    DatabaseUnavailable,
    NotReplayable,
    ParkedMessageNotFound,
    ParkingLotBusy,
    RpcTimeout,
    ServiceBusy,
    ServiceUnavailable,
    TooManyParked,
)
from nameko_reliable.messages import timestamp

# The only list of the services: `python -m dev.services` names each place where one of them is missing.
SERVICES = ("users", "products", "orders", "notifications")
_EVENT_ID_NAMESPACE = UUID("6f2c3c0e-6d0b-4d6c-9f0a-7d1f6b0a2c51")
# The input that marshmallow passes to a field.
Data = Mapping[str, Any] | None
# A JSON object: an argument or an answer of an RPC.
JsonObject = dict[str, Any]
MAX_BIGINT = 2**63 - 1
MAX_INT = 2**31 - 1
MAX_MONEY = Decimal("9999999999.99")
MAX_QUANTITY = 10_000
MAX_LINES = 100
MAX_PAGE = 10**12
# Patterns are also part of the HTTP API's document, so they use only the syntax of ECMAScript's regular expressions.
CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
# ASCII only: other addresses need SMTPUTF8, which few servers offer.
# No encoded word (RFC 2047): mail programs would decode it to another address.
EMAIL = (
    r"(?!.*=\?)[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}"
    r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z0-9-]{2,63}"
)
MONEY = r"[0-9]{1,10}(\.[0-9]{1,2})?"


def keep_wire_path(error_class: type[Exception], module: str) -> None:
    """Send an error by the path that it had in 0.1.0, and accept it by either path.

    A replica of 0.1.0, during an upgrade or after a rollback, knows only the old path. The next release may send an
    error by the path of its own module: this release accepts that already.
    """
    deserialize_to_instance(error_class)
    error_class.__module__ = module
    deserialize_to_instance(error_class)


class ShopError(Exception):
    """Base of the shop's errors. They carry fields, not sentences: the gateway writes those.

    An error crosses the broker as its class's path and its positional arguments. Scalars arrive as strings, so each
    class converts its own. A process that imports the class gets it back; a bare `nameko shell` sees a RemoteError.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keep_wire_path(cls, "contracts.errors")


for kit_error in (
    DatabaseUnavailable,
    NotReplayable,
    ParkingLotBusy,
    RpcTimeout,
    ServiceBusy,
    ServiceUnavailable,
    TooManyParked,
):
    keep_wire_path(kit_error, "extensions.errors")
# In 0.1.0 the kit did not have it.
keep_wire_path(ParkedMessageNotFound, "contracts.errors")


class InvalidInput(ShopError):
    """errors: {field: [sentence, …]}, nested as the input was."""

    def __init__(self, errors: dict[str, Any]) -> None:
        super().__init__(errors)
        self.errors = errors


class NotAllowed(ShopError):
    pass


class NotFound(ShopError):
    """It does not exist, or the caller may not know of it."""


class Conflict(ShopError):
    """The request is valid, but the present state does not allow it."""


class Taken(Conflict):
    """field: the unique value that another account or product holds (`email`, `username`, `sku`)."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class Unavailable(ShopError):
    """A service that this one needs did not answer. Nothing is left half done."""

    # The label in the metrics of calls.
    outcome = "unavailable"


def event_id_of(*facts: object) -> UUID:
    """The same id for the same facts, so that handlers recognize an event that `ops.resend` sends again."""
    return uuid5(_EVENT_ID_NAMESPACE, " ".join(map(str, facts)))


def load(schema: Schema, data: Any) -> Any:
    """The checked values of `data`. Raises InvalidInput."""
    try:
        return schema.load(data)
    except ValidationError as error:
        raise InvalidInput(error.normalized_messages()) from error


def load_id(value: Any, field: str = "id") -> int:
    """The value as a row's id. Raises InvalidInput, with the sentence under the field's name."""
    try:
        return int(Id().deserialize(value))
    except ValidationError as error:
        raise InvalidInput({field: error.messages}) from error


class Text(fields.String):
    """A string without the characters PostgreSQL and mail headers can't hold: NUL, lone surrogates."""

    pattern: str | None = r"^[^\x00]*$"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if "\x00" in text or re.search("[\ud800-\udfff]", text):
            raise ValidationError("Not a valid string: it contains a NUL or half a surrogate pair.")
        return text


class Line(Text):
    """One line of text: trimmed, and without control characters."""

    pattern: str | None = None

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        text = self._normalized(super()._deserialize(value, attr, data, **kwargs))
        # Before trimming too, since the HTTP API's document can't express that outer spaces don't count.
        self._validate(text)
        text = text.strip()
        if re.search(f"[{CONTROLS}]", text):
            raise ValidationError("Must be one line, without control characters.")
        return text

    def _normalized(self, text: str) -> str:
        return text


def check_normalizable(text: str, max_length: int) -> str:
    """The text. Raises ValidationError if it is too long in any normal form, or takes long to normalize."""
    if len(text) > 4 * max_length:
        raise ValidationError(f"Longer than maximum length {max_length}.")
    if has_stacked_marks(text):
        raise ValidationError("Has more than 30 marks on one letter.")
    return text


def check_characters(text: str) -> str:
    if error := character_error(text):
        raise ValidationError(error)
    return text


class Name(Line):
    """A visible Line, normalized by `normal`. The limit is for the length of the normal form."""

    normal_form: Literal["NFC", "NFKC"] = "NFC"
    normal = staticmethod(normal_text)

    def __init__(self, max_length: int, **kwargs: Any) -> None:
        super().__init__(validate=validate.Length(1, max_length), **kwargs)
        self.max_length = max_length

    def _normalized(self, text: str) -> str:
        return unicodedata.normalize(self.normal_form, check_normalizable(text, self.max_length))

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        name = check_characters(self.normal(super()._deserialize(value, attr, data, **kwargs)))
        if not is_visible(name):
            raise ValidationError("Must have a visible character: a letter, a digit or a symbol.")
        return name


class Description(Text):
    """Lines of text, normalized."""

    pattern = rf"^[^\x00{FORMATS}]*$"

    def __init__(self, max_length: int, **kwargs: Any) -> None:
        super().__init__(validate=validate.Length(max=max_length), **kwargs)
        self.max_length = max_length

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        return check_characters(normal_text(check_normalizable(text, self.max_length)))


def fold_address(address: str) -> str:
    """The address in lower case if it is ASCII, else unchanged: U+212A would become k, which is another address."""
    return address.lower() if address.isascii() else address


class Email(Line):
    """An address in lower case. Only its syntax is checked: one @, no white space, a dotted domain."""

    pattern = rf"^\s*{EMAIL}\s*$"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(validate=validate.Length(max=254), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        email = fold_address(super()._deserialize(value, attr, data, **kwargs))
        if not re.fullmatch(EMAIL, email):
            raise ValidationError("Not a valid email address.")
        return email


class Money(fields.Field[Decimal]):
    """A decimal string with at most two places, "29.99"; never a JSON number, which is a float."""

    pattern = f"^{MONEY}$"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> Decimal:
        if not isinstance(value, str) or not re.fullmatch(MONEY, value):
            raise ValidationError('Must be a decimal string with two places, like "29.99".')
        return Decimal(value).quantize(Decimal("0.01"))

    def _serialize(self, value: Decimal | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else str(value)


class StrictBoolean(fields.Boolean):
    """Only JSON's true and false: marshmallow also takes 1 and "yes"."""

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


def Id(**kwargs: Any) -> fields.Integer:
    return fields.Integer(strict=True, validate=validate.Range(1, MAX_BIGINT), **kwargs)


def Limit(highest: int, default: int) -> fields.Integer:
    return fields.Integer(load_default=default, validate=validate.Range(1, highest))


def Offset() -> fields.Integer:
    return fields.Integer(load_default=0, validate=validate.Range(0, MAX_BIGINT))


class ParkedQuery(Schema):
    limit = Limit(2000, default=50)


class ParkedSelection(Schema):
    """queue: of the messages. reason: a part of their reason. None matches any. left: from the previous answer."""

    queue = fields.String(load_default=None, allow_none=True, validate=validate.Length(1, 255))
    reason = fields.String(load_default=None, allow_none=True, validate=validate.Length(1, 500))
    left = fields.Integer(load_default=None, allow_none=True, strict=True, validate=validate.Range(0, MAX_BIGINT))


class PageQuery(Schema):
    """A part of a list: `limit` items from `offset` on, or the page with that number. The first page is 1.

    Loads to limit and offset. A subclass may accept older names of them.
    """

    limit = Limit(100, default=20)
    offset = Offset()
    page = fields.Integer(validate=validate.Range(1, MAX_PAGE))

    @validates_schema(pass_original=True)
    def refuse_conflicting_names(self, data: dict[str, Any], original: Mapping[str, Any], **kwargs: Any) -> None:
        for names in (("offset", "skip", "page"), ("limit", "page_size")):
            given = [name for name in names if name in original]
            if len(given) > 1:
                raise ValidationError(f"Give either {' or '.join(given)}.", given[-1])

    @post_load
    def resolve_aliases(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        data["limit"] = data.pop("page_size", data["limit"])
        data["offset"] = data.pop("skip", data["offset"])
        if "page" in data:
            data["offset"] = (data.pop("page") - 1) * data["limit"]
        return data


class Time(fields.Field[datetime]):
    """An aware time, written as ISO 8601 in UTC."""

    def _serialize(self, value: datetime | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else timestamp(value)


class View(Schema):
    """The schema of an answer, which has all of the members and no others."""

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.required = True

    def write(self, thing: Any) -> dict[str, Any]:
        """The answer about a thing, from its attributes. The same as `dump`, in a third of the time."""
        return {name: write(getattr(thing, name)) for name, write in self._writers.items()}

    @cached_property
    def _writers(self) -> dict[str, Callable[[Any], Any]]:
        return {name: _writer(field) for name, field in self.fields.items()}


def _writer(field: fields.Field[Any]) -> Callable[[Any], Any]:
    """A function that writes a value of the field."""
    if isinstance(field, fields.Nested):
        return cast(View, field.schema).write
    if isinstance(field, fields.List):
        write = _writer(field.inner)
        return lambda values: [write(value) for value in values]
    if isinstance(field, Time):
        return lambda moment: moment and timestamp(moment)
    if isinstance(field, Money):
        return lambda amount: None if amount is None else str(amount)
    return lambda value: value
