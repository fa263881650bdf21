"""The hooks that run before every view, in the order of `BEFORE`, and after it.

    for hook in BEFORE:
        app.before_request(hook)

A hook that raises or returns an answer ends the request: the later hooks and the view do not run. Views find
`g.caller`, `g.client`, `g.shop` (calls to the services, with a deadline) and `g.cache`.

Not guaranteed: hooks do not run for answers from the cache, nor for requests over the default rate limit. Both are
answered before Flask (gateway/cache.py, gateway/limits.py).
"""

import functools
import re
from contextlib import ExitStack
from typing import Any

from flask import Response, current_app, g, request
from werkzeug.exceptions import NotFound

from contracts.types import MAX_BIGINT
from gateway.addresses import client_network
from gateway.api import refuse_unknown_parameters
from gateway.auth import authorize
from gateway.headers import preflight
from gateway.limits import BoundedBody
from gateway.routes import health

CALL_SECONDS = 5.0


def set_route() -> None:
    """Set the route's template for the log, the metrics and the trace."""
    if request.url_rule is not None:
        request.environ["route"] = route_template(request.url_rule.rule)


@functools.cache
def route_template(rule: str) -> str:
    """A Flask rule in the notation of OpenAPI: `/orders/{order_id}`."""
    return re.sub("<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule)


def authorize_caller() -> None:
    """Check the origin where the view reads a cookie, the view's own rate limit, and the caller's access."""
    view = _requested_view()
    if view is None:
        return
    if hasattr(view, "with_cookie"):
        current_app.extensions["origins"].check(request.headers.get("Origin"), request.headers.get("Host"))
    address = client_network(request.environ["client_address"])
    if hasattr(view, "limit"):
        current_app.extensions["limits"].count(view.limit, address, request.environ["answer_headers"])
    g.caller = request.environ["caller"]
    authorize(view, g.caller, request.environ["token_error"], request.args)
    # users accepts one line of at most 300 characters.
    user_agent = re.sub("[^\x20-\x7e]", "", request.headers.get("User-Agent", ""))[:300]
    g.client = {"client_address": address, "user_agent": user_agent or None}


def read_request() -> None:
    """Check the path's ids and the query parameters, and read the body."""
    view = _requested_view()
    if view is None:
        return
    if not all(1 <= value <= MAX_BIGINT for value in (request.view_args or {}).values() if isinstance(value, int)):
        raise NotFound
    refuse_unknown_parameters(view)
    g.slots = ExitStack()
    # The server discards the bodies of all other methods.
    if request.method in ("POST", "PUT", "PATCH"):
        large_body = current_app.extensions["limits"].large_bodies.take(g.client["client_address"])
        body = BoundedBody(request.environ["wsgi.input"], lambda: g.slots.enter_context(large_body))
        request.environ["wsgi.input"] = body
        request.get_data()


def begin_work() -> None:
    """Take a slot for a concurrent request, and start the deadline of the calls to services."""
    rule = request.url_rule
    if _requested_view() is None or rule is None:
        return
    # Only after the body is read, so that a slow sender uses neither a slot nor the services' time.
    # Sockets have their own limit. Health checks have none, as a busy gateway is healthy.
    if not rule.websocket and request.blueprint != health.blp.name:
        g.slots.enter_context(current_app.extensions["limits"].in_flight.take(g.client["client_address"]))
    cluster = current_app.extensions["cluster"]
    g.shop = cluster.within(seconds=CALL_SECONDS, request_id=request.environ.get("request_id"))
    g.cache = current_app.extensions["cache"]


BEFORE = (set_route, preflight, authorize_caller, read_request, begin_work)


def forbid_storing(response: Response) -> Response:
    """Answer with `no-store` unless the view set something else."""
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def release_slots(error: BaseException | None) -> None:
    if "slots" in g:
        g.slots.close()


def _requested_view() -> Any:
    """None when no view has the address, and for OPTIONS, which only asks for the methods."""
    return None if request.method == "OPTIONS" else current_app.view_functions.get(request.endpoint or "")
