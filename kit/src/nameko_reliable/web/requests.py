"""WSGI middleware that logs, counts and traces every request, and gives it an id.

    app = RequestMiddleware(create_app(), service="bakery", tracer=tracer)

App and middleware share in the environ:

request_id       the client's X-Request-ID if it is well-formed, else a new one
answer_headers   {name: value}, added to every answer. It starts as the app's attribute `answer_headers`, if there is
                 one, and the X-Request-ID.
route            the template of the request's route, `/cakes/{cake_id}`, set by the app, for metrics and spans

A trace begins with each request. It links to the client's traceparent, which decides nothing: any client can send one.

WebSockets are logged when they end. They are neither counted nor traced.

Not guaranteed: that the client received the answer. The logged status is the one that the app gave.
"""

import functools
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import Histogram

from nameko_reliable.telemetry.logs import bind_log_fields
from nameko_reliable.telemetry.registry import KIT
from nameko_reliable.telemetry.tracing import NO_SPAN, Operation, RecordedSpan, Span, Tracer

logger = logging.getLogger(__name__)

REQUEST = Operation("HTTP", "server")
REQUESTS = Histogram(
    "http_request_duration_seconds",
    "Requests from their head to their answer, without WebSockets. route: its template, or `unmatched` if the request "
    "fits none or was refused earlier.",
    ["service", "route", "method", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=KIT,
)
# Cached: finding a series takes longer than counting in it, and there are few.
series_of = functools.cache(REQUESTS.labels)
REQUEST_ID = re.compile("[A-Za-z0-9._-]{1,128}")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


# Names, since the annotations of a nested function are evaluated each time it is defined.
Headers: TypeAlias = list[tuple[str, str]]
Write: TypeAlias = Callable[[bytes], object]


class RequestMiddleware:
    def __init__(self, app: WSGIApplication, service: str, tracer: Tracer) -> None:
        self.app = app
        self.service = service
        self.tracer = tracer
        self.answer_headers: dict[str, str] = getattr(app, "answer_headers", {})

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        started_at = time.perf_counter()
        request_id = environ["request_id"] = _request_id(environ.get("HTTP_X_REQUEST_ID"))
        answer_headers = environ["answer_headers"] = {**self.answer_headers, "X-Request-ID": request_id}
        # A WebSocket never calls start_response. Any other request without a status was cut off.
        code: int = HTTPStatus.SWITCHING_PROTOCOLS if _is_websocket(environ) else HTTPStatus.INTERNAL_SERVER_ERROR

        def start(status: str, headers: Headers, exc_info: Any = None) -> Write:
            nonlocal code
            code = int(status[:3])
            return start_response(status, [*headers, *answer_headers.items()], exc_info)

        with self._span(environ) as span, bind_log_fields(request_id=request_id):
            try:
                return self.app(environ, start)
            except Exception:
                code = HTTPStatus.INTERNAL_SERVER_ERROR
                logger.exception("the app failed")
                raise
            finally:
                method, path = environ["REQUEST_METHOD"], environ.get("RAW_PATH_INFO", "")
                seconds = time.perf_counter() - started_at
                if code != HTTPStatus.SWITCHING_PROTOCOLS:
                    route, verb = environ.get("route", "unmatched"), method if method in METHODS else "other"
                    series_of(self.service, route, verb, int(code)).observe(seconds)
                fields = {"method": method, "path": path, "status": code, "duration_ms": round(seconds * 1000, 1)}
                logger.info("%s %s %d", method, path, code, extra={"fields": fields})
                if span.is_recorded:
                    _describe(span, environ, int(code))

    def _span(self, environ: WSGIEnvironment) -> Span:
        if _is_websocket(environ):
            return NO_SPAN  # A span would be open for hours.
        return self.tracer.entry_span(REQUEST, link=environ.get("HTTP_TRACEPARENT"))


def _is_websocket(environ: WSGIEnvironment) -> bool:
    upgrade: str = environ.get("HTTP_UPGRADE", "")
    return upgrade.lower() == "websocket"


def _describe(span: RecordedSpan, environ: WSGIEnvironment, status: int) -> None:
    method, route = environ["REQUEST_METHOD"], environ.get("route")
    name = method if method in METHODS else "HTTP"
    attributes = {
        "http.request.method": method if method in METHODS else "_OTHER",
        "url.scheme": environ["wsgi.url_scheme"],
        "http.request.header.x-request-id": [environ["request_id"]],
        "http.response.status_code": status,
    }
    if route is not None:
        name = f"{name} {route}"
        # Not for unmatched requests, whose path may hold anything.
        attributes |= {"http.route": route, "url.path": environ["PATH_INFO"]}
    span.name = name
    span.set_attributes(attributes)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.set_error(str(status))


def _request_id(given: str | None) -> str:
    return given if given and REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
