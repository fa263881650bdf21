"""The security and CORS headers of every answer.

The server adds `environ["answer_headers"]` to every answer. They start as `security_headers`.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Response, request

from gateway.auth import AllowedOrigins

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' https: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HSTS_SECONDS = 365 * 24 * 3600

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-Request-ID"
EXPOSED_HEADERS = "ETag, Link, Location, X-Total-Count, X-Request-ID, Retry-After, RateLimit, RateLimit-Policy"
PREFLIGHT_SECONDS = 600


def security_headers(config: Mapping[str, Any]) -> dict[str, str]:
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    if uses_https(config):
        headers["Strict-Transport-Security"] = f"max-age={HSTS_SECONDS}"
    return headers


def uses_https(config: Mapping[str, Any]) -> bool:
    """Whether browsers reach the shop over https only. config: FRONTEND_URL."""
    return config["FRONTEND_URL"].startswith("https://")


class CorsMiddleware:
    """WSGI middleware: lets pages of the allowed origins read the answer (CORS)."""

    def __init__(self, app: WSGIApplication, origins: AllowedOrigins) -> None:
        self.app = app
        self.origins = origins

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = environ["answer_headers"]
        headers["Vary"] = "Origin"
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and self.origins.allows(origin):
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
        return self.app(environ, start_response)


def preflight() -> Response | None:
    """The answer to a CORS preflight request; None for any other request."""
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return None
    response = Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = METHODS
    response.headers["Access-Control-Allow-Headers"] = REQUEST_HEADERS
    response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    return response
