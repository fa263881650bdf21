import inspect
import json
from decimal import Decimal
from importlib import import_module

import pytest
from flask import Flask

from contracts.notifications import NotFailed, NotificationNotFound
from contracts.orders import (
    IllegalTransition,
    KeyReused,
    OrderNotFound,
    ProductsTimeout,
    ProductsUnavailable,
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
from contracts.types import SERVICES, InvalidInput, NotAllowed, ShopError, Taken
from contracts.users import (
    AccountDisabled,
    InvalidCredentials,
    InvalidSession,
    InvalidToken,
    LastAdmin,
    MailNotNeeded,
    NotConfigured,
    SessionNotFound,
    SignInProviderAway,
    SignInRefused,
    TooManyFailures,
    UnprovenAddress,
    UserNotFound,
)
from gateway.errors import PROBLEMS, problem_of, problem_response
from nameko_reliable.errors import (
    DatabaseUnavailable,
    NotReplayable,
    ParkedMessageNotFound,
    ParkingLotBusy,
    RpcTimeout,
    ServiceBusy,
    ServiceUnavailable,
    TooManyParked,
    outcome_of,
)

EXAMPLES = [
    (InvalidInput({"email": ["Not a valid email address."]}), 422, "invalid-input"),
    (InvalidCredentials(), 401, "invalid-credentials"),
    (InvalidSession(), 401, "invalid-session"),
    (InvalidToken(), 400, "invalid-token"),
    (TooManyFailures(8), 429, "too-many-failures"),
    (SignInRefused("The code was used already."), 400, "sign-in-refused"),
    (AccountDisabled(), 403, "account-disabled"),
    (NotAllowed(), 403, "not-allowed"),
    (UserNotFound(3), 404, "user-not-found"),
    (ProductNotFound("3"), 404, "product-not-found"),
    (OrderNotFound(3), 404, "order-not-found"),
    (NotificationNotFound(3), 404, "notification-not-found"),
    (ParkedMessageNotFound("m"), 404, "parked-message-not-found"),
    (SessionNotFound(3), 404, "session-not-found"),
    (Taken("sku"), 409, "taken"),
    (SkuTaken(3, "Morel", False), 409, "taken"),
    (InsufficientStock(3, 5, 2), 409, "insufficient-stock"),
    (TooManyOpenOrders(20, 30, 1, 20, 200), 409, "too-many-open-orders"),
    (PriceChanged(3, Decimal("1.00"), Decimal("1.10")), 409, "price-changed"),
    (IllegalTransition("shipped", "pending"), 409, "illegal-transition"),
    (StaleVersion(1, 2), 412, "stale-version"),
    (RequestInFlight(7), 409, "request-in-flight"),
    (KeyReused(), 422, "key-reused"),
    (NotFailed(3, "sent"), 409, "not-failed"),
    (ReservationReleased("r"), 409, "conflict"),
    (LastAdmin(), 409, "last-admin"),
    (UnprovenAddress(), 409, "unproven-address"),
    (MailNotNeeded(), 409, "mail-not-needed"),
    (NotConfigured(), 503, "not-configured"),
    (SignInProviderAway(), 502, "sign-in-provider-away"),
    (ProductsUnavailable(), 503, "service-unavailable"),
    (ProductsTimeout(), 504, "timeout"),
    (NotReplayable(), 409, "not-replayable"),
    (TooManyParked(1000, 40_000), 409, "too-many-parked"),
    (ParkingLotBusy("products"), 503, "parking-lot-busy"),
    (ServiceUnavailable("orders"), 503, "service-unavailable"),
    (DatabaseUnavailable("orders"), 503, "service-unavailable"),
    (ServiceBusy("users", 2), 503, "overloaded"),
    (RpcTimeout("orders"), 504, "timeout"),
]


@pytest.fixture
def answered():
    """`answered(error)` is the problem and the headers that a client gets for the error."""

    def answered(error):
        with Flask("shop").test_request_context("/orders/3", environ_overrides={"request_id": "r-1"}):
            response = problem_response(error)
        return json.loads(response.data), response.headers

    return answered


@pytest.mark.parametrize(("error", "status", "word"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_each_error_has_its_status_and_type(answered, error, status, word):
    details, headers = answered(error)

    assert (details["status"], details["type"]) == (status, word)
    assert (details["instance"], details["request_id"]) == ("/orders/3", "r-1")
    assert "{" not in details["detail"]
    assert headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(("error", "status", "word"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_outcome_metric_of_a_call_matches_the_status_of_its_error(error, status, word):
    expected = {502: "unavailable", 503: "unavailable", 504: "timeout"}.get(status, "refused")
    if word == "not-configured":
        # This state is permanent, and no service is down.
        expected = "refused"

    assert outcome_of(error) == expected


def test_every_error_class_has_an_example():
    leaves = {
        error_class
        for module in ("types", *SERVICES)
        for _, error_class in inspect.getmembers(import_module(f"contracts.{module}"), inspect.isclass)
        if issubclass(error_class, ShopError) and not error_class.__subclasses__()
    }

    assert leaves <= {type(error) for error, _, _ in EXAMPLES}


def test_the_fields_of_an_error_are_in_the_body(answered):
    details, _ = answered(InsufficientStock(3, 5, 2))

    assert (details["product_id"], details["requested"], details["available"]) == (3, 5, 2)
    assert details["detail"] == "5 of product 3 were requested, 2 are left."


def test_money_stays_a_string(answered):
    details, _ = answered(PriceChanged(3, "1.00", "1.10"))

    assert (details["given"], details["current"]) == ("1.00", "1.10")


def test_a_status_field_of_an_error_does_not_replace_the_http_status(answered):
    details, _ = answered(NotFailed(3, "sent"))

    assert details["status"] == 409
    assert "sent" in details["detail"]


def test_a_temporary_error_has_a_retry_after_header(answered):
    assert answered(RequestInFlight(7))[1]["Retry-After"] == "7"
    assert "Retry-After" in answered(ServiceUnavailable("orders"))[1]


def test_an_unexpected_error_is_logged_and_its_details_are_hidden(answered, caplog):
    details, _ = answered(KeyError("secret detail"))

    assert (details["status"], details["type"]) == (500, "internal-error")
    assert "secret" not in json.dumps(details)
    assert [record.exc_info[1].args for record in caplog.records] == [("secret detail",)]


def test_a_problem_type_has_one_status():
    statuses = {}
    for problem in PROBLEMS.values():
        assert statuses.setdefault(problem.type, problem.status) == problem.status
    assert problem_of(ValueError).status == 500
