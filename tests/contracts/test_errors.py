import json
from decimal import Decimal

import pytest
from nameko.exceptions import deserialize, serialize

from contracts import errors

EXAMPLES = {
    errors.InvalidInput: ({"items": {"0": {"quantity": ["Must be 1 or more."]}}},),
    errors.InvalidCredentials: (),
    errors.InvalidSession: (),
    errors.InvalidToken: (),
    errors.TooManyFailures: (60,),
    errors.SignInRefused: ("The code was used already.",),
    errors.AccountDisabled: (),
    errors.NotAllowed: (),
    errors.NotFound: (),
    errors.UserNotFound: ("ada@forage.example",),
    errors.ProductNotFound: (2**62,),
    errors.OrderNotFound: (7,),
    errors.NotificationNotFound: (7,),
    errors.SessionNotFound: (7,),
    errors.ParkedMessageNotFound: ("c0ffee",),
    errors.Conflict: (),
    errors.Taken: ("sku",),
    errors.SkuTaken: (7, "Porcini", False),
    errors.InsufficientStock: (7, 3, 2),
    errors.TooManyOpenOrders: (20, 38, 4, 20, 200),
    errors.PriceChanged: (7, Decimal("14.50"), Decimal("15.00")),
    errors.IllegalTransition: ("shipped", "cancelled"),
    errors.StaleVersion: (3, 4),
    errors.RequestInFlight: (10,),
    errors.KeyReused: (),
    errors.NotFailed: (7, "sent"),
    errors.ReservationReleased: ("6f1c1d1e-0000-4000-8000-000000000000",),
    errors.LastAdmin: (),
    errors.UnprovenAddress: (),
    errors.MailNotNeeded: (),
    errors.Unavailable: (),
    errors.NotConfigured: (),
    errors.SignInProviderAway: (),
    errors.ProductsUnavailable: (),
    errors.ProductsTimeout: (),
}


def tree(cls):
    return [cls, *(descendant for child in cls.__subclasses__() for descendant in tree(child))]


EVERY_ERROR = tree(errors.ShopError)[1:]


def over_the_wire(error):
    return deserialize(json.loads(json.dumps(serialize(error))))


@pytest.mark.parametrize("error_class", EVERY_ERROR, ids=lambda cls: cls.__name__)
def test_an_error_crosses_the_wire_with_its_class_and_its_fields_types(error_class):
    error = error_class(*EXAMPLES[error_class])

    received = over_the_wire(error)

    assert type(received) is error_class
    assert vars(received) == vars(error)
    assert {name: type(value) for name, value in vars(received).items()} == {
        name: type(value) for name, value in vars(error).items()
    }


@pytest.mark.parametrize("error_class", EVERY_ERROR, ids=lambda cls: cls.__name__)
def test_the_tree_in_the_docstring_shows_every_error(error_class):
    assert error_class.__name__ in errors.__doc__.split()


def test_an_error_can_cross_two_services():
    error = errors.PriceChanged(7, Decimal("14.50"), Decimal("15.00"))

    received = over_the_wire(over_the_wire(error))

    assert (received.product_id, received.given, received.current) == (7, Decimal("14.50"), Decimal("15.00"))


def test_fields_that_fail_validation_by_position_keep_their_sentences():
    error = errors.InvalidInput({"items": {0: {"quantity": ["Must be 1 or more."]}}})

    assert over_the_wire(error).errors == {"items": {"0": {"quantity": ["Must be 1 or more."]}}}
