import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from email.message import EmailMessage
from email.utils import getaddresses
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contracts.names import normal_sku, username_key
from contracts.notifications import NotificationQuery, ReadMark
from contracts.orders import OrderPlacement, OrderQuery, OrderRequest, OrderView, StatusChange
from contracts.products import (
    ProductChanges,
    ProductQuery,
    ProductReplacement,
    ProductRequest,
    ReservationId,
    ReservationRequest,
    StockChange,
    StockLines,
)
from contracts.types import MAX_BIGINT, MAX_INT, InvalidInput, Money, Time, View, load, load_id
from contracts.users import Credentials, PasswordResetRequest, UserRegistration
from tests.factories import a_product, an_account

# Also used by the storefront's tests.
ADDRESSES = json.loads(Path(__file__).with_name("addresses.json").read_text())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NOT_INTEGERS = (None, True, "5", "", 1.0, 1.5, float("nan"), float("inf"), [1], {"1": 1})
NOT_TEXTS = (None, True, 5, 1.5, ["porcini"], {"name": "porcini"}, "a NUL \x00 in it", "half a pair \ud83c")
NOT_LINES = ("two\nlines", "a tab\there", "a bell\x07", "a C1\x85control", "a\u2028separator")
# With format characters, or without a visible character.
NOT_NAMES = (
    *("\u202eright to left\u202c", "admin\u200b", "soft\u00adhyphen", "\ufeffa mark", "\u2066isolated\u2069"),
    *("\U000e0061 tag", "a\u200d", "\u200cabc", "a \u200d b", "ab\u200d1"),
    *("\u200d\u200d\u200d", "\u2060", "\u3164\u3164\u3164", "\u2800", "\u0301", "\ufe0f"),
)
STACKED = "e" + "\u0301\u0316" * 16
STRANGE_BUT_LEGAL = (
    "🍄" * 3,
    "فطر الكمأة",
    "米酒",
    "\U0004f639",
    "می\u200cخواهم",
    "👩🏽\u200d🌾 ❤\ufe0f\u200d🔥",
    "O'Hara; DROP TABLE users --",
    "100 % & <b>_</b>",
)

EVERY_SCHEMA = [
    UserRegistration(),
    Credentials(),
    ProductRequest(),
    ProductReplacement(),
    ProductChanges(partial=True),
    StockChange(),
    OrderRequest(),
    OrderPlacement(),
    StatusChange(),
    ReadMark(),
    ProductQuery(),
    OrderQuery(),
    NotificationQuery(),
    StockLines(),
    ReservationId(),
    ReservationRequest(),
]
every_schema = pytest.mark.parametrize("schema", EVERY_SCHEMA, ids=lambda schema: type(schema).__name__)


def refused_fields(schema, data):
    with pytest.raises(InvalidInput) as refusal:
        load(schema, data)
    return set(refusal.value.errors)


def an_order(*lines):
    return {"items": [{"product_id": 1, "quantity": 1, **line} for line in lines]}


# Any input


@every_schema
@settings(max_examples=40)
@given(data=JSON)
@example(data=[])
@example(data="text")
@example(data=None)
@example(data={"surprise": 1})
def test_any_json_is_accepted_or_refused_with_sentences(schema, data):
    try:
        load(schema, data)
    except InvalidInput as refusal:
        assert refusal.errors


@every_schema
@settings(max_examples=40)
@given(data=st.data())
def test_any_value_of_a_known_field_is_accepted_or_refused_with_sentences(schema, data):
    fields = {name: data.draw(JSON, label=name) for name in schema.fields}

    try:
        load(schema, fields)
    except InvalidInput as refusal:
        assert refusal.errors


@every_schema
def test_an_unknown_field_is_refused(schema):
    assert "surprise" in refused_fields(schema, {"surprise": 1})


# Accounts


def test_registration_lower_cases_the_address_and_trims_the_name():
    account = load(UserRegistration(), an_account(email=" Ada@Forage.Example ", username="  Ada  "))

    assert (account["email"], account["username"]) == ("ada@forage.example", "Ada")


def test_a_password_is_not_changed():
    account = load(UserRegistration(), an_account(password="  🍄 with spaces  "))

    assert account["password"] == "  🍄 with spaces  "


@pytest.mark.parametrize(
    "email",
    (
        *NOT_TEXTS,
        *NOT_LINES,
        "",
        *ADDRESSES["refused"],
        "ada@forage.example\nBcc: bo@forage.example",
        "ada@\N{KELVIN SIGN}elvin.example",
        "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}vy@forage.example",
        "a@" + "a." * 125 + "example",
    ),
)
def test_registration_refuses_an_address_that_cannot_receive_mail(email):
    assert refused_fields(UserRegistration(), an_account(email=email)) == {"email"}


@pytest.mark.parametrize("email", ADDRESSES["taken"])
def test_registration_accepts_an_address_that_can_receive_mail(email):
    assert load(UserRegistration(), an_account(email=email))["email"] == email.lower()


@pytest.mark.parametrize("email", (".a@b.example", "a..b@b.example", "a@b.--", "a@1.2.3.44"))
def test_an_account_older_than_the_rules_for_addresses_can_order(email):
    placement = {**an_order({}), "user_id": 1, "user_email": email, "idempotency_key": "a"}

    assert load(OrderPlacement(), placement)["user_email"] == email
    assert load(PasswordResetRequest(), {"email": email})["email"] == email


def test_an_address_may_have_254_characters():
    email = "a" * 64 + "@" + "b" * 63 + "." + "c" * 63 + "." + "d" * 61

    assert len(email) == 254
    assert load(UserRegistration(), an_account(email=email))["email"] == email
    assert refused_fields(UserRegistration(), an_account(email=email + "d")) == {"email"}


@given(st.from_regex(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,20}@[a-z0-9][a-z0-9-]{0,8}\.[a-z]{2,5}", fullmatch=True))
def test_a_mail_to_an_accepted_address_goes_to_that_address(address):
    try:
        taken = load(UserRegistration(), an_account(email=address))["email"]
    except InvalidInput:
        return
    mail = EmailMessage()
    mail["To"] = taken
    assert getaddresses([str(mail["To"])]) == [("", taken)]


@pytest.mark.parametrize(
    "username",
    (
        *NOT_TEXTS,
        *NOT_LINES,
        *NOT_NAMES,
        STACKED,
        "",
        "  ",
        "a" * 51,
        "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 3,
    ),
)
def test_a_username_is_one_line_of_1_to_50_visible_characters(username):
    assert refused_fields(UserRegistration(), an_account(username=username)) == {"username"}


@pytest.mark.parametrize("username", (*STRANGE_BUT_LEGAL, "a", "é", "a" * 50))
def test_a_username_may_be_in_any_script(username):
    assert load(UserRegistration(), an_account(username=username))["username"] == username


@pytest.mark.parametrize(
    "given, name", {" ﬁsh ": "fish", "ＡＤＡ": "ADA", "e\u0301" * 50: "é" * 50, "a\u00a0b": "a b"}.items()
)
def test_a_username_is_stored_and_counted_in_its_compatibility_form(given, name):
    assert load(UserRegistration(), an_account(username=given))["username"] == name


@pytest.mark.parametrize(
    "names",
    (
        ("Ada", "ADA", "ａｄａ", "a\u200dda", "Ada\u3164", "ada\ufe0f"),
        ("Straße", "STRASSE"),
        ("ﬁsh", "FISH"),
        ("\u212bse", "A\u030ase", "åSE"),
        ("ΣΑΣ", "σας"),
    ),
)
def test_names_that_look_the_same_have_the_same_key(names):
    assert len({username_key(name) for name in names}) == 1


@pytest.mark.parametrize("password", (*NOT_TEXTS, STACKED, "", "a" * 7, "a" * 129, "e\u0301" * 129))
def test_a_password_has_8_to_128_characters(password):
    assert refused_fields(UserRegistration(), an_account(password=password)) == {"password"}


@pytest.mark.parametrize("password", ("a" * 8, "a" * 128, "🍄" * 128))
def test_a_password_is_counted_in_characters(password):
    assert load(UserRegistration(), an_account(password=password))["password"] == password


# Products


@pytest.mark.parametrize(
    "field, values",
    {
        "name": (*NOT_TEXTS, *NOT_LINES, *NOT_NAMES, STACKED, "", " ", "a" * 201),
        "description": (*NOT_TEXTS[1:], STACKED, "a" * 10_001, "a bell that \u202esgnir\u202c"),
        "price": (
            *(None, True, 5, 14.5, float("nan"), ["1"]),
            *("", "-0", "-1", "+1", "1.", ".5", "1.005", "1e3", "1e400", "NaN", "Infinity", "1,50", " 1"),
            *("1_0", "٣", "10000000000.00", "1\n"),
        ),
        "stock_quantity": (*NOT_INTEGERS, -1, MAX_INT + 1),
        "sku": (*NOT_TEXTS[1:], *NOT_LINES, *NOT_NAMES, STACKED, "", " ", "a" * 65, "ß" * 33),
        "category": (*NOT_TEXTS[1:], *NOT_LINES, *NOT_NAMES, STACKED, "", " ", "a" * 101),
        "image_url": (
            *NOT_TEXTS[1:],
            *("", "http://forage.example/a.jpg", "//evil.example/a.jpg", "/\\evil.example", "\\\\evil.example"),
            *("javascript:alert(1)", "data:text/html,x", "https://", "https:///a", "a b.jpg", "/" + "a" * 500),
        ),
    }.items(),
)
def test_a_product_out_of_bounds_is_refused(field, values):
    for value in values:
        assert refused_fields(ProductRequest(), a_product(**{field: value})) == {field}, repr(value)


@pytest.mark.parametrize(
    "field, values",
    {
        "name": (*STRANGE_BUT_LEGAL, "TV", "米", "a" * 200),
        "description": (None, "", "two\nlines", "a" * 10_000, *STRANGE_BUT_LEGAL),
        "stock_quantity": (0, MAX_INT),
        "category": (None, "a", "a" * 100),
        "image_url": (None, "/images/a.jpg", "images/a.jpg?v=1:2", "https://forage.example/a.jpg", "/" + "a" * 499),
    }.items(),
)
def test_a_product_on_the_bounds_is_accepted_unchanged(field, values):
    for value in values:
        assert load(ProductRequest(), a_product(**{field: value}))[field] == value


@pytest.mark.parametrize(
    "given, price",
    {"0": "0.00", "0.00": "0.00", "0.01": "0.01", "5": "5.00", "9.5": "9.50", "9999999999.99": "9999999999.99"}.items(),
)
def test_a_price_has_two_places(given, price):
    taken = load(ProductRequest(), a_product(price=given))["price"]

    assert isinstance(taken, Decimal)
    assert str(taken) == price


@pytest.mark.parametrize(
    "given, sku",
    {
        " cep-1 ": "CEP-1",
        "a1": "A1",
        "ｔｖ": "TV",
        "straße": "STRASSE",
        "ﬁsh": "FISH",
        "cre\u0300me": "CR\u00c8ME",
        "ŉ": "ʼN",
        # In upper case it has three characters, of which two compose again.
        "\u0390": "\u03aa\u0301",
        "a" * 64: "A" * 64,
    }.items(),
)
def test_a_sku_is_stored_in_its_normal_form(given, sku):
    assert load(ProductRequest(), a_product(sku=given))["sku"] == sku


@pytest.mark.parametrize("field, length", {"name": 200, "category": 100, "description": 10_000}.items())
def test_a_text_is_composed_before_its_length_is_checked(field, length):
    taken = load(ProductRequest(), a_product(**{field: "e\u0301" * length}))

    assert taken[field] == "é" * length


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6))
@example("\u0345\u1e9e")
def test_the_key_of_a_key_is_the_key_itself(name):
    assert username_key(username_key(name)) == username_key(name)
    assert normal_sku(normal_sku(name)) == normal_sku(name)


def test_a_replacement_requires_all_fields_but_the_stock():
    assert refused_fields(ProductReplacement(), {}) == {"name", "price"}
    whole = a_product()
    del whole["stock_quantity"]
    del whole["sku"]
    assert not {"stock_quantity", "sku"} & load(ProductReplacement(), whole).keys()


def test_changes_contain_only_the_given_fields():
    assert load(ProductChanges(partial=True), {"price": "3"}) == {"price": Decimal("3.00")}
    assert load(ProductChanges(partial=True), {"is_active": False}) == {"is_active": False}


@pytest.mark.parametrize("is_active", (None, "true", "yes", 0, 1, 2, [], {}))
def test_only_json_booleans_are_booleans(is_active):
    assert refused_fields(ProductChanges(partial=True), {"is_active": is_active}) == {"is_active"}


@pytest.mark.parametrize("change", ({}, {"stock_quantity": 1, "delta": 1}))
def test_a_change_of_stock_is_either_a_quantity_or_a_delta(change):
    assert refused_fields(StockChange(), change)


# Orders


def test_an_order_request_keeps_its_lines():
    order = load(OrderRequest(), an_order({"product_id": 3, "quantity": 2, "unit_price": "9.5"}))

    assert order["items"] == [{"product_id": 3, "quantity": 2, "unit_price": Decimal("9.50")}]


@pytest.mark.parametrize(
    "line",
    (
        *({"quantity": quantity} for quantity in (*NOT_INTEGERS, 0, -1, 10_001)),
        *({"product_id": product_id} for product_id in (*NOT_INTEGERS, 0, -1, MAX_BIGINT + 1)),
        *({"unit_price": price} for price in (None, 14.5, "1e400", "-1", "NaN")),
        {"gift": True},
    ),
)
def test_a_line_out_of_bounds_is_refused(line):
    assert refused_fields(OrderRequest(), an_order(line)) == {"items"}


@pytest.mark.parametrize("items", (None, [], {}, "items", [None], [[]], [{}], [{"product_id": 1, "quantity": 1}] * 101))
def test_an_order_has_1_to_100_lines(items):
    assert refused_fields(OrderRequest(), {"items": items}) == {"items"}


def test_a_hundred_lines_of_one_product_are_accepted():
    assert len(load(OrderRequest(), an_order(*[{"quantity": 100}] * 100))["items"]) == 100


def test_lines_of_one_product_that_exceed_the_bound_together_are_refused():
    assert load(OrderRequest(), an_order({"quantity": 9_999}, {"quantity": 1}))
    assert refused_fields(OrderRequest(), an_order({"quantity": 9_999}, {"quantity": 2})) == {"items"}


def test_lines_of_one_product_with_two_prices_are_refused():
    assert load(OrderRequest(), an_order({"unit_price": "2"}, {}, {"unit_price": "2.00"}))
    assert refused_fields(OrderRequest(), an_order({"unit_price": "2"}, {"unit_price": "2.01"})) == {"items"}


@pytest.mark.parametrize("key", (None, 5, "", "a" * 256, "a\nb", "a\n", "ключ", "\x7f", " ", " a", "a "))
def test_an_idempotency_key_has_1_to_255_printable_ascii_characters(key):
    placement = {**an_order({}), "user_id": 1, "user_email": "ada@forage.example", "idempotency_key": key}

    assert refused_fields(OrderPlacement(), placement) == {"idempotency_key"}


@pytest.mark.parametrize("key", ("a", "a b", "~" * 255))
def test_an_idempotency_key_on_the_bounds_is_accepted(key):
    placement = {**an_order({}), "user_id": 1, "user_email": "ada@forage.example", "idempotency_key": key}

    assert load(OrderPlacement(), placement)["idempotency_key"] == key


def test_a_reservation_has_one_line_for_each_product():
    line = {"product_id": 1, "quantity": 1}
    reservation_id = "6f1c1d1e-0000-4000-8000-000000000000"

    request = load(ReservationRequest(), {"reservation_id": reservation_id, "lines": [line]})

    assert request["reservation_id"] == UUID(reservation_id)
    assert refused_fields(StockLines(), {"lines": [line, line]}) == {"lines"}


@pytest.mark.parametrize("reservation_id", (None, 5, "", "c0ffee", [], {}))
def test_a_reservation_id_is_a_uuid(reservation_id):
    assert refused_fields(ReservationId(), {"reservation_id": reservation_id}) == {"reservation_id"}


# Queries


@pytest.mark.parametrize(
    "schema, field, values",
    (
        (ProductQuery(), "limit", (0, 101, -1, "x", "", None, float("inf"), float("nan"), [1])),
        (ProductQuery(), "offset", (-1, MAX_BIGINT + 1, "1" * 5000, None)),
        (ProductQuery(), "sort_by", ("stock_quantity", "--price", "price;", "", None, ["price"])),
        (ProductQuery(), "is_active", ("perhaps", None, [])),
        (ProductQuery(), "name", ("a" * 201, "a\x00b")),
        (ProductQuery(), "category", ("a" * 101, "a\x00b")),
        (ProductQuery(), "page", (0, 10**12 + 1, None)),
        (OrderQuery(), "skip", (-1, MAX_BIGINT + 1, None)),
        (OrderQuery(), "limit", (0, 101, None)),
        (OrderQuery(), "status", ("composted", "", 1)),
        (OrderQuery(), "q", ("a" * 255, "a\x00b")),
        (OrderQuery(), "created_from", ("yesterday", "2026-13-01", "2026-11-22T25:00:00Z", 5)),
        (NotificationQuery(), "page", (0, 10**12 + 1, None)),
        (NotificationQuery(), "page_size", (0, 101, None)),
        (NotificationQuery(), "status", ("lost", 1)),
        (NotificationQuery(), "order_id", (0, MAX_BIGINT + 1, "x")),
        (NotificationQuery(), "after_id", (-1, MAX_BIGINT + 1)),
        (NotificationQuery(), "unread", ("perhaps", [])),
    ),
)
def test_a_query_out_of_bounds_is_refused(schema, field, values):
    for value in values:
        assert refused_fields(schema, {field: value}) == {field}, repr(value)


def test_missing_fields_of_a_query_have_defaults():
    assert load(ProductQuery(), {}) == {
        "limit": 20,
        "offset": 0,
        "category": None,
        "name": None,
        "is_active": True,
        "sort_by": "-created_at",
    }
    assert load(OrderQuery(), {})["limit"] == 100
    assert load(NotificationQuery(), {})["limit"] == 20


def test_a_time_without_a_zone_is_utc():
    query = load(OrderQuery(), {"created_from": "2026-11-22T10:00:00"})

    assert query["created_from"] == datetime(2026, 11, 22, 10, tzinfo=UTC)


@pytest.mark.parametrize("value", (*NOT_INTEGERS, 0, -1, MAX_BIGINT + 1))
def test_an_invalid_id_is_refused_under_its_name(value):
    with pytest.raises(InvalidInput) as refusal:
        load_id(value, "order_id")

    assert set(refusal.value.errors) == {"order_id"}


def test_a_view_writes_the_same_as_marshmallows_dump():
    now = datetime(2026, 11, 30, 12, tzinfo=timezone(timedelta(hours=1)))
    item = SimpleNamespace(product_id=1, product_name="Cep", product_price=Decimal("7.10"), quantity=2)
    vars(item).update(id=3, order_id=2, subtotal=Decimal("14.20"), created_at=now)
    order = SimpleNamespace(id=2, user_id=1, user_email="ada@forage.example", status="pending")
    vars(order).update(total_amount=Decimal("14.20"), created_at=now, updated_at=now, items=[item, item])
    order.history = [SimpleNamespace(status="pending", at=now, by="customer")]

    written = OrderView().write(order)

    assert written == OrderView().dump(order)
    assert written["created_at"] == "2026-11-30T11:00:00.000000Z"
    assert written["items"][1]["subtotal"] == "14.20"


def test_a_view_writes_a_missing_value_as_null():
    class OfferView(View):
        price = Money(allow_none=True)
        ends_at = Time(allow_none=True)

    offer = SimpleNamespace(price=None, ends_at=None)

    assert OfferView().write(offer) == OfferView().dump(offer) == {"price": None, "ends_at": None}
