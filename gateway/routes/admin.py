from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import eventlet
from flask import g
from werkzeug.exceptions import NotFound

from contracts.orders import SummaryQuery
from contracts.types import JsonObject
from gateway.api import Blueprint
from gateway.auth import admin
from gateway.paging import PAGE_HEADERS, page_headers
from gateway.routes.products import public_fields
from gateway.schemas import (
    MAX_PARKED_OFFSET,
    SUBSCRIBERS,
    ParkedPageView,
    ParkedProgressView,
    ParkedQuery,
    ParkedSelection,
    SummaryView,
)
from nameko_reliable.amqp.broker import BrokerUnavailable
from nameko_reliable.errors import (
    NotReplayable,
    ParkedMessageNotFound,
    ParkingLotBusy,
    RpcTimeout,
    ServiceUnavailable,
    TooManyParked,
)

blp = Blueprint("admin", __name__, description="The back office")

SUMMARY_SECONDS = 3
SERVICE = {"in": "path", "name": "service", "required": True, "schema": {"type": "string", "enum": [*SUBSCRIBERS]}}
MESSAGE_ID = {
    "in": "path",
    "name": "message_id",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
}


@blp.route("/admin/summary")
@admin
@blp.arguments(SummaryQuery, location="query")
@blp.response(200, SummaryView)
def summarize(query: JsonObject) -> JsonObject:
    """The shop's sums: sales by day, low stock, mails, parked messages.

    Days are in UTC, oldest first, and end today. A cancelled order counts only in `by_status`, which counts all
    orders. `products` has the ten active products with the lowest stock, `low_stock_threshold` or less.
    A section is null when its service is stopped or too slow. Without the broker the answer is 503.
    """
    shop = g.shop.within(seconds=SUMMARY_SECONDS)
    orders, stock, mails, *parked = _call_all(
        partial(shop.orders.summarize_orders, **query),
        shop.products.summarize_stock,
        shop.notifications.summarize_mails,
        *(getattr(shop, service).count_parked for service in SUBSCRIBERS),
    )
    if stock is not None:
        # A replica of 0.1.0, in an upgrade or after a rollback, answers with whole records.
        stock["products"] = [public_fields(product) for product in stock["products"]]
    return {
        **query,
        "orders": orders,
        "stock": stock,
        "mails": mails,
        "parked": dict(zip(SUBSCRIBERS, parked, strict=True)),
    }


@blp.route("/admin/parked")
@admin
@blp.arguments(ParkedQuery, location="query")
@blp.response(200, ParkedPageView, headers=PAGE_HEADERS)
@blp.problems(ParkingLotBusy)
def list_parked(query: JsonObject) -> tuple[JsonObject, int, dict[str, str]]:
    """Messages that no handler could process, newest first, of all services except those in `away`.

    At most the oldest 1,000 messages of a service are listed; `total` counts all.
    """
    end = query["offset"] + query["limit"]
    answers = _call_all(*(partial(getattr(g.shop, service).list_parked, limit=end) for service in SUBSCRIBERS))
    answered = {service: answer for service, answer in zip(SUBSCRIBERS, answers, strict=True) if answer is not None}
    messages = [
        {"service": service, "id": message.pop("message_id"), **message}
        for service, answer in answered.items()
        for message in answer["messages"]
    ]
    messages.sort(key=lambda message: message["parked_at"] or "", reverse=True)
    total = sum(answer["total"] for answer in answered.values())
    page = {
        **query,
        "messages": messages[query["offset"] : end],
        "total": total,
        "away": [service for service in SUBSCRIBERS if service not in answered],
    }
    pages_left = (MAX_PARKED_OFFSET - query["offset"]) // query["limit"]
    links = page_headers(query, min(total, end + pages_left * query["limit"]))
    return page, 200, {**links, "X-Total-Count": str(total)}


@blp.route("/admin/parked/<service>/<message_id>/replay", methods=["POST"], parameters=[SERVICE, MESSAGE_ID])
@admin
@blp.response(204)
@blp.problems(NotFound, ParkedMessageNotFound, NotReplayable, TooManyParked, ParkingLotBusy)
def replay_parked(service: str, message_id: str) -> None:
    """Pass the message to its handler again. If that fails, it is parked again under another id."""
    _subscriber(service).replay_parked(message_id=message_id)


@blp.route("/admin/parked/<service>/<message_id>", methods=["DELETE"], parameters=[SERVICE, MESSAGE_ID])
@admin
@blp.response(204)
@blp.problems(NotFound, ParkedMessageNotFound, TooManyParked, ParkingLotBusy)
def discard_parked(service: str, message_id: str) -> None:
    """Delete the message permanently."""
    _subscriber(service).discard_parked(message_id=message_id)


@blp.route("/admin/parked/replay", methods=["POST"])
@admin
@blp.arguments(ParkedSelection)
@blp.response(200, ParkedProgressView)
@blp.problems(ParkingLotBusy)
def replay_all_parked(selection: JsonObject) -> JsonObject:
    """Pass up to 500 messages of a service to their handlers again, oldest first.

    Send the answer's `left` with the next call, until it is 0. So a message that fails again is not replayed twice.
    """
    return _subscriber(selection.pop("service")).replay_all_parked(**selection)


@blp.route("/admin/parked/discard", methods=["POST"])
@admin
@blp.arguments(ParkedSelection)
@blp.response(200, ParkedProgressView)
@blp.problems(ParkingLotBusy)
def discard_all_parked(selection: JsonObject) -> JsonObject:
    """Delete up to 500 messages of a service permanently, oldest first. Continue as with `replay`."""
    return _subscriber(selection.pop("service")).discard_all_parked(**selection)


def _subscriber(service: str) -> Any:
    if service not in SUBSCRIBERS:
        raise NotFound
    return getattr(g.shop, service)


def _call_all(*calls: Callable[[], Any]) -> list[Any]:
    """The results of concurrent calls, None where the service is unavailable or too slow.

    Raises ServiceUnavailable when the broker is unreachable, and ParkingLotBusy.
    """
    greenlets = [eventlet.spawn(copy_context().run, _call, call) for call in calls]
    answers = [greenlet.wait() for greenlet in greenlets]
    for answer in answers:
        if isinstance(answer, (ServiceUnavailable, ParkingLotBusy)):
            raise answer
    return answers


def _call(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ParkingLotBusy as error:
        return error
    except (ServiceUnavailable, RpcTimeout) as error:
        return error if isinstance(error.__cause__, BrokerUnavailable) else None
