"""Every error as an HTTP answer: one table from error class to status, type, title and detail.

Answers are RFC 9457 problem details. An error's own fields (`product_id`, `available`, …) are added to the standard
members and fill the placeholders of the detail. A class without a row has that of its nearest base class. An error
without any row is a bug: it is logged, and answered with 500 and no details.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flask import Response, request
from simple_websocket import ConnectionError as HandshakeError
from werkzeug import exceptions as http
from werkzeug.routing import WebsocketMismatch
from werkzeug.wrappers import Request
from wsproto.utilities import RemoteProtocolError

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
from contracts.products import InsufficientStock, PriceChanged, ProductNotFound, SkuTaken, StaleVersion
from contracts.types import (
    Conflict,
    InvalidInput,
    NotAllowed,
    NotFound,
    ShopError,
    Taken,
    Unavailable,
)
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
from nameko_reliable.errors import (
    NotReplayable,
    ParkedMessageNotFound,
    ParkingLotBusy,
    RpcTimeout,
    ServiceBusy,
    ServiceUnavailable,
    TooManyParked,
)

logger = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"


class Unauthenticated(Exception):
    """The request has no valid access token. reason: why the token that was sent is not valid."""

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason


class AccessDenied(Exception):
    """The caller's role does not allow the route."""


class ForeignOrigin(Exception):
    """The request comes from a page of another site."""


class MalformedRequest(Exception):
    """The request cannot be parsed. reason: a sentence that says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnsupportedBody(Exception):
    """The content type of the body is not JSON."""


class RateLimited(Exception):
    """limit: the name of the limit. quota: the requests that it allows in its window."""

    def __init__(self, limit: str, quota: int, retry_after_seconds: int) -> None:
        super().__init__(limit, quota, retry_after_seconds)
        self.limit, self.quota, self.retry_after_seconds = limit, quota, retry_after_seconds


class Overloaded(Exception):
    """The number of concurrent requests, large bodies or sockets is at its limit."""


class NotReady(Exception):
    """No service answers the health check."""


@dataclass(frozen=True)
class Problem:
    """detail: a sentence, with placeholders for the error's fields."""

    status: int
    type: str
    detail: str
    retry_after_seconds: int | None = None

    @property
    def title(self) -> str:
        return self.type.replace("-", " ").capitalize()


PROBLEMS: Mapping[type, Problem] = {
    InvalidInput: Problem(422, "invalid-input", "Some values are missing, malformed or out of bounds."),
    InvalidCredentials: Problem(401, "invalid-credentials", "The address or the password is wrong."),
    InvalidSession: Problem(401, "invalid-session", "The session has ended: log in again."),
    InvalidToken: Problem(400, "invalid-token", "This link was used already or has expired: ask for a new one."),
    TooManyFailures: Problem(
        429, "too-many-failures", "Too many logins have failed: try again in {retry_after_seconds} s."
    ),
    SignInRefused: Problem(400, "sign-in-refused", "{reason}"),
    AccountDisabled: Problem(403, "account-disabled", "This account is disabled."),
    NotAllowed: Problem(403, "not-allowed", "You may not do this."),
    NotFound: Problem(404, "not-found", "This does not exist."),
    UserNotFound: Problem(404, "user-not-found", "There is no such user."),
    ProductNotFound: Problem(404, "product-not-found", "There is no product {product_id}."),
    OrderNotFound: Problem(404, "order-not-found", "There is no order {order_id}."),
    NotificationNotFound: Problem(404, "notification-not-found", "There is no notification {notification_id}."),
    SessionNotFound: Problem(404, "session-not-found", "There is no session {session_id}."),
    ParkedMessageNotFound: Problem(404, "parked-message-not-found", "There is no such parked message."),
    Conflict: Problem(409, "conflict", "The current state does not allow this."),
    Taken: Problem(409, "taken", "This {field} is taken."),
    SkuTaken: Problem(409, "taken", "Product {product[id]}, {product[name]}, has this SKU."),
    InsufficientStock: Problem(
        409, "insufficient-stock", "{requested} of product {product_id} were requested, {available} are left."
    ),
    TooManyOpenOrders: Problem(
        409,
        "too-many-open-orders",
        "You have {open_orders} open orders with {open_units} units, and this one has {requested_units}; "
        "{most_orders} orders with {most_units} units in all are allowed. Wait until some are shipped, or cancel one. "
        "An account whose address is not confirmed is allowed fewer.",
    ),
    PriceChanged: Problem(409, "price-changed", "Product {product_id} costs {current} now, no longer {given}."),
    IllegalTransition: Problem(409, "illegal-transition", "An order that is {old_status} cannot become {new_status}."),
    NotFailed: Problem(
        409,
        "not-failed",
        "Only a notification that has failed or is uncertain can be tried again; this one is {status}.",
    ),
    MailNotNeeded: Problem(
        409, "mail-not-needed", "This mail is not needed any more: the account is gone, disabled or verified already."
    ),
    RequestInFlight: Problem(
        409, "request-in-flight", "The first request with this Idempotency-Key has not finished yet."
    ),
    LastAdmin: Problem(409, "last-admin", "This is the last admin: make another user an admin first."),
    UnprovenAddress: Problem(
        409, "unproven-address", "The provider has not verified your address: register, or log in with your password."
    ),
    StaleVersion: Problem(412, "stale-version", "If-Match names version {given}, the current version is {current}."),
    KeyReused: Problem(422, "key-reused", "This Idempotency-Key was used with another body."),
    Unavailable: Problem(503, "service-unavailable", "A service is down; nothing was changed.", 2),
    ProductsUnavailable: Problem(503, "service-unavailable", "The catalogue is down; nothing was ordered.", 2),
    ProductsTimeout: Problem(504, "timeout", "The catalogue did not answer in time; nothing was ordered.", 2),
    NotConfigured: Problem(503, "not-configured", "No sign-in provider is configured."),
    SignInProviderAway: Problem(502, "sign-in-provider-away", "The sign-in provider does not answer.", 5),
    NotReplayable: Problem(409, "not-replayable", "The queue of this message is not known: it can only be discarded."),
    TooManyParked: Problem(
        409,
        "too-many-parked",
        "This message is not among the oldest {looked_at} of {total}, which alone can be reached: "
        "replay or discard those first.",
    ),
    ParkingLotBusy: Problem(503, "parking-lot-busy", "Another request is using the parked messages: try again.", 1),
    ServiceUnavailable: Problem(503, "service-unavailable", "A service is down.", 2),
    RpcTimeout: Problem(504, "timeout", "A service did not answer in time. It may still have done its work.", 2),
    ServiceBusy: Problem(503, "overloaded", "Too many such requests at once: try again in {retry_after_seconds} s."),
    NotReady: Problem(503, "not-ready", "No service answers.", 2),
    Unauthenticated: Problem(401, "unauthenticated", "A valid access token is required."),
    AccessDenied: Problem(403, "access-denied", "Your role does not allow this."),
    ForeignOrigin: Problem(403, "foreign-origin", "This page's origin is not allowed: add it to ALLOWED_ORIGINS."),
    MalformedRequest: Problem(400, "malformed-request", "{reason}"),
    RateLimited: Problem(
        429, "rate-limited", "The limit {limit} is {quota} requests a minute: try again in {retry_after_seconds} s."
    ),
    Overloaded: Problem(503, "overloaded", "The gateway is overloaded: try again.", 1),
    UnsupportedBody: Problem(415, "unsupported-media-type", "Send JSON, as application/json."),
    RemoteProtocolError: Problem(400, "malformed-request", "The WebSocket handshake can't be read."),
    HandshakeError: Problem(400, "malformed-request", "The WebSocket handshake can't be read."),
    WebsocketMismatch: Problem(426, "upgrade-required", "This address accepts only WebSocket connections."),
    http.BadRequest: Problem(400, "malformed-request", "The request can't be read."),
    http.NotFound: Problem(404, "not-found", "There is nothing at this address."),
    http.MethodNotAllowed: Problem(405, "method-not-allowed", "This address does not support that method."),
    http.RequestEntityTooLarge: Problem(413, "too-large", "A body may have at most 1 MiB."),
    Exception: Problem(500, "internal-error", "An unexpected error occurred. The log has it under the request_id."),
}

# Errors whose fields are sent to the client.
EXPOSED_ERRORS = (ShopError, ServiceUnavailable, RpcTimeout, ParkedMessageNotFound, TooManyParked, RateLimited)


def problem_of(error_class: type[BaseException]) -> Problem:
    """The row of the class, or of its nearest base class."""
    return next(PROBLEMS[base] for base in error_class.__mro__ if base in PROBLEMS)


def problem_response(error: Exception, request: Request = request) -> Response:
    """The error as an HTTP answer, which is also a WSGI app. Outside of Flask, pass the request."""
    problem = problem_of(type(error))
    if problem is PROBLEMS[Exception]:
        logger.error("unexpected error", exc_info=error)
    fields = vars(error) if isinstance(error, EXPOSED_ERRORS) else {}
    body = {
        **fields,
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail.format_map(vars(error)),
        "instance": request.path,
        "request_id": request.environ.get("request_id"),
    }
    headers = [("Cache-Control", "no-store"), *_headers(error, problem)]
    return Response(json.dumps(body, default=str), problem.status, headers, content_type=PROBLEM_JSON)


def _headers(error: Exception, problem: Problem) -> Iterator[tuple[str, str]]:
    if isinstance(error, Unauthenticated) and error.reason:
        yield "WWW-Authenticate", f'Bearer error="invalid_token", error_description="{error.reason}"'
    elif isinstance(error, (Unauthenticated, InvalidCredentials, InvalidSession)):
        yield "WWW-Authenticate", "Bearer"
    if isinstance(error, http.MethodNotAllowed) and error.valid_methods:
        yield "Allow", ", ".join(sorted(error.valid_methods))
    if isinstance(error, WebsocketMismatch):
        yield "Upgrade", "websocket"
    retry_after_seconds = getattr(error, "retry_after_seconds", problem.retry_after_seconds)
    if retry_after_seconds is not None:
        yield "Retry-After", str(retry_after_seconds)
