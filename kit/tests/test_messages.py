"""nameko_reliable.messages: JSON and back gives the same value, and any other JSON is refused."""

import json
import string
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nameko_reliable.messages import from_payload, timestamp, to_payload


@dataclass(frozen=True)
class Layer:
    name: str
    height: Decimal


@dataclass(frozen=True)
class Cake:
    id: int
    name: str
    sold: bool
    price: Decimal
    batch: UUID
    baked_at: datetime
    layers: tuple[Layer, ...]
    tags: tuple[str, ...] = ()
    best_before: datetime | None = None
    weight: Decimal | None = None
    top: Layer | None = None


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29), timezones=zones)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
layers = st.builds(Layer, name=st.text(), height=decimals)
cakes = st.builds(
    Cake,
    id=st.integers(),
    name=st.text(),
    sold=st.booleans(),
    price=decimals,
    batch=st.uuids(),
    baked_at=moments,
    layers=st.lists(layers, max_size=3).map(tuple),
    tags=st.lists(st.text(), max_size=3).map(tuple),
    best_before=st.none() | moments,
    weight=st.none() | decimals,
    top=st.none() | layers,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
)
field_names = st.sampled_from([*Cake.__dataclass_fields__, *string.ascii_lowercase])

VALID = {
    "id": 1,
    "name": "Torte",
    "sold": False,
    "price": "12.50",
    "batch": str(uuid4()),
    "baked_at": "2026-01-31T12:00:00Z",
    "layers": [],
}


@given(cakes)
def test_a_payload_is_read_back_as_the_same_value(cake):
    assert from_payload(Cake, json.loads(json.dumps(to_payload(cake)))) == cake


@given(json_values | st.dictionaries(field_names, json_values).map(lambda changes: {**VALID, **changes}))
def test_any_json_is_read_or_is_a_value_error(payload):
    try:
        cake = from_payload(Cake, payload)
    except ValueError:
        return
    assert from_payload(Cake, to_payload(cake)) == cake


@given(moments)
def test_a_timestamp_is_in_utc_ends_with_z_and_has_27_characters(moment):
    text = timestamp(moment)

    assert (len(text), text[-1]) == (27, "Z")
    assert datetime.fromisoformat(text) == moment


def test_an_absent_field_gets_its_default_and_unknown_fields_are_ignored():
    cake = from_payload(Cake, {**VALID, "from_the_future": 1})

    assert (cake.tags, cake.best_before, cake.top) == ((), None, None)
    assert cake.baked_at == datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("id", True, "True is no int"),
        ("id", 1.0, "1.0 is no int"),
        ("id", "1", "'1' is no int"),
        ("id", None, "None is no int"),
        ("sold", 0, "0 is no bool"),
        ("price", 12.5, "not a string"),
        ("price", "NaN", "not a finite number"),
        ("price", "Infinity", "not a finite number"),
        ("price", "cheap", "InvalidOperation|ConversionSyntax"),
        ("batch", "7", "badly formed"),
        ("baked_at", "2026-01-31T12:00:00", "without its zone"),
        ("baked_at", "yesterday", "Invalid isoformat"),
        ("layers", {}, "not a list"),
        ("layers", [{"name": "top"}], "Layer.height is missing"),
        ("layers", ["top"], "Layer is not a JSON object"),
        ("top", [], "Layer is not a JSON object"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_fields_name(field, value, reason):
    with pytest.raises(ValueError, match=rf"Cake\.{field}: .*({reason})"):
        from_payload(Cake, {**VALID, field: value})


@pytest.mark.parametrize("field", VALID)
def test_a_field_without_a_default_is_required(field):
    payload = {name: value for name, value in VALID.items() if name != field}

    with pytest.raises(ValueError, match=rf"Cake\.{field} is missing"):
        from_payload(Cake, payload)
