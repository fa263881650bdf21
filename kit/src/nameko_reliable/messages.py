"""Frozen dataclasses to JSON and back, with every field's type checked.

    payload = to_payload(CakeBaked(cake="Torte", …))
    event = from_payload(CakeBaked, payload)      # raises ValueError with the field's name

Types: int, str, bool, Decimal, UUID, datetime (aware), tuple[X, ...], X | None and dataclasses of these. Decimal and
UUID travel as strings, times as ISO 8601 in UTC. A field with a default may be absent. Unknown fields are ignored, so
a newer publisher can add some.
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar
from uuid import UUID, uuid4

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. Each subclass is a frozen dataclass with its own fields.

    source: the service that emits it. subscribers: its durable handlers, as (service, method).
    retired_subscribers: handlers that the source sends nothing to any more. They take what older releases of the source
    still send.
    """

    source: ClassVar[str]
    name: ClassVar[str]
    subscribers: ClassVar[tuple[tuple[str, str], ...]] = ()
    retired_subscribers: ClassVar[tuple[tuple[str, str], ...]] = ()

    event_id: UUID = dataclasses.field(default_factory=uuid4)
    timestamp: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))
    # Increase it when a field changes its meaning. A handler parks a version that it does not know.
    version: int = 1


@dataclasses.dataclass(frozen=True)
class PlainEvent:
    """An event without a class, as Nameko's EventDispatcher sends it. Its handlers get the JSON value."""

    source: str
    name: str
    subscribers: ClassVar[tuple[tuple[str, str], ...]] = ()
    retired_subscribers: ClassVar[tuple[tuple[str, str], ...]] = ()


EventType: TypeAlias = type[Event] | PlainEvent


def to_payload(message: "DataclassInstance") -> dict[str, Any]:
    return {f.name: _to_json(getattr(message, f.name)) for f in dataclasses.fields(message)}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(type(value)):
        return to_payload(value)
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    return value


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds and Z, always 27 characters."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def from_payload(cls: type[T], payload: object) -> T:
    if not isinstance(payload, dict):
        raise ValueError(f"{cls.__name__} is not a JSON object")
    values = {}
    for name, (field_type, required) in _fields(cls).items():
        if name in payload:
            try:
                values[name] = _convert(field_type, payload[name])
            except (ValueError, InvalidOperation) as error:
                raise ValueError(f"{cls.__name__}.{name}: {error}") from None
        elif required:
            raise ValueError(f"{cls.__name__}.{name} is missing")
    return cls(**values)


@cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    field_types = typing.get_type_hints(cls)
    return {
        f.name: (field_types[f.name], f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
        for f in dataclasses.fields(cls)
    }


def _aware_datetime(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return moment


def _finite_decimal(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError("not a finite number")
    return number


_FROM_TEXT: dict[type, Callable[[str], object]] = {datetime: _aware_datetime, Decimal: _finite_decimal, UUID: UUID}


def _convert(field_type: Any, value: Any) -> Any:
    if isinstance(field_type, types.UnionType):
        types_of_value = [each for each in field_type.__args__ if each is not type(None)]
        if value is None and len(types_of_value) < len(field_type.__args__):
            return None
        return _convert(types_of_value[0], value)
    if typing.get_origin(field_type) is tuple:
        if not isinstance(value, list):
            raise ValueError("not a list")
        return tuple(_convert(field_type.__args__[0], item) for item in value)
    if isinstance(field_type, type) and dataclasses.is_dataclass(field_type):
        return from_payload(field_type, value)
    if field_type in _FROM_TEXT:
        if not isinstance(value, str):
            raise ValueError("not a string")
        return _FROM_TEXT[field_type](value)
    if type(value) is not field_type:
        raise ValueError(f"{value!r:.40} is no {field_type.__name__}")
    return value
