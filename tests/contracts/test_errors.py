import json
from decimal import Decimal

import pytest
from nameko.exceptions import deserialize, serialize

from contracts.notifications import NotFailed, NotificationNotFound
from contracts.orders import (
    IllegalTransition,
    KeyReused,
    OrderNotFound,
    RequestInFlight,
    TooManyOpenOrders,
)
from contracts.products import (
    InsufficientStock,
    PriceChanged,
    ProductNotFound,
    ReservationReleased,
    SkuTaken,
    StaleVersion,
)
from contracts.types import (
    InvalidInput,
    ShopError,
    Taken,
)
from contracts.users import (
    SessionNotFound,
    SignInRefused,
    TooManyFailures,
    UserNotFound,
)
from nameko_reliable.errors import DatabaseUnavailable, ParkedMessageNotFound, RpcTimeout

# The fields of an error. One that is not here has none.
EXAMPLES = {
    InvalidInput: ({"items": {"0": {"quantity": ["Must be 1 or more."]}}},),
    TooManyFailures: (60,),
    SignInRefused: ("The code was used already.",),
    UserNotFound: ("ada@forage.example",),
    ProductNotFound: (2**62,),
    OrderNotFound: (7,),
    NotificationNotFound: (7,),
    SessionNotFound: (7,),
    Taken: ("sku",),
    SkuTaken: (7, "Porcini", False),
    InsufficientStock: (7, 3, 2),
    TooManyOpenOrders: (20, 38, 4, 20, 200),
    PriceChanged: (7, Decimal("14.50"), Decimal("15.00")),
    IllegalTransition: ("shipped", "cancelled"),
    StaleVersion: (3, 4),
    RequestInFlight: (10,),
    NotFailed: (7, "sent"),
    ReservationReleased: ("6f1c1d1e-0000-4000-8000-000000000000",),
}


def tree(cls):
    return [cls, *(descendant for child in cls.__subclasses__() for descendant in tree(child))]


EVERY_ERROR = tree(ShopError)[1:]


def over_the_wire(error):
    return deserialize(json.loads(json.dumps(serialize(error))))


@pytest.mark.parametrize("error_class", EVERY_ERROR, ids=lambda cls: cls.__name__)
def test_an_error_keeps_its_class_and_the_types_of_its_fields_on_the_wire(error_class):
    error = error_class(*EXAMPLES.get(error_class, ()))

    received = over_the_wire(error)

    assert type(received) is error_class
    assert vars(received) == vars(error)
    assert {name: type(value) for name, value in vars(received).items()} == {
        name: type(value) for name, value in vars(error).items()
    }


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("contracts.errors", PriceChanged(7, "14.50", "15.00")),
        ("contracts.errors", ParkedMessageNotFound("c0ffee")),
        ("extensions.errors", DatabaseUnavailable("orders")),
        ("extensions.errors", RpcTimeout("orders")),
    ],
)
def test_replicas_of_two_releases_know_each_others_errors(path, error):
    sent = serialize(error)

    assert sent["exc_path"] == f"{path}.{type(error).__name__}"
    assert type(deserialize(sent)) is type(error)


def test_the_next_release_may_send_errors_by_the_paths_of_their_modules():
    assert type(deserialize({"exc_path": "contracts.orders.KeyReused"})) is KeyReused
    sent = {"exc_path": "nameko_reliable.errors.RpcTimeout", "exc_args": ["orders"]}
    assert type(deserialize(sent)) is RpcTimeout


def test_an_error_can_cross_two_services():
    error = PriceChanged(7, Decimal("14.50"), Decimal("15.00"))

    received = over_the_wire(over_the_wire(error))

    assert (received.product_id, received.given, received.current) == (7, Decimal("14.50"), Decimal("15.00"))


def test_errors_of_list_items_keep_their_sentences():
    error = InvalidInput({"items": {0: {"quantity": ["Must be 1 or more."]}}})

    assert over_the_wire(error).errors == {"items": {"0": {"quantity": ["Must be 1 or more."]}}}
