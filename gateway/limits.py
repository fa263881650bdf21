"""The limits on requests: their rate, concurrent requests, and concurrent large bodies.

    @blp.route("/users/login", methods=["POST"])
    @limited("login")
    def login(): ...

Every request counts against the default limit: of its user when it has a valid access token, else of its client's
address. A marked view also counts against its named limit, always by address. Every answer reports the remaining
quota, as draft-ietf-httpapi-ratelimit-headers-10 defines.

Each process counts for itself. With RATE_LIMIT_STORAGE_URI all gateways count together in that Redis.
While that Redis is unreachable, no request is counted and none is refused.
"""

import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from wsgiref.types import InputStream, StartResponse, WSGIApplication, WSGIEnvironment

import eventlet
from nameko.extensions import DependencyProvider
from werkzeug.wrappers import Request

from gateway.addresses import TrustedProxies, client_network
from gateway.auth import AccessTokens, Caller, ViewFunction
from gateway.errors import Overloaded, RateLimited, Unauthenticated, problem_response

logger = logging.getLogger(__name__)

DEFAULT = "default"
WINDOW_SECONDS = 60
# Requests in WINDOW_SECONDS. RATE_LIMIT_SCALE multiplies them.
LIMITS = {DEFAULT: 600, "login": 30, "refresh": 60, "register": 20, "reset": 10}
# Counted but never refused: an orchestrator behind the same untrusted proxy as customers shares their quota.
PROBES = ("/livez", "/readyz", "/health")
STORAGE_SECONDS = 0.25
STORAGE_PAUSE_SECONDS = 5
# Of all clients, and of one address. A RATE_LIMIT_SCALE above 1 multiplies the limit of one address.
MAX_IN_FLIGHT, MAX_IN_FLIGHT_PER_ADDRESS = 512, 64
# A body up to this size is not counted.
LARGE_BODY_BYTES = 16 * 1024
MAX_LARGE_BODIES, MAX_LARGE_BODIES_PER_ADDRESS = 128, 8


def limited(name: str) -> Callable[[ViewFunction], ViewFunction]:
    """Mark a view: its requests also count, by client address, against this limit of LIMITS."""

    if name not in LIMITS:
        raise ValueError(f"There is no limit {name!r} in LIMITS.")

    def decorator(view: ViewFunction) -> ViewFunction:
        view.limit = name  # type: ignore[attr-defined]
        return view

    return decorator


@dataclass(frozen=True, slots=True)
class RateLimit:
    name: str
    quota: int

    @property
    def policy(self) -> str:
        return f'"{self.name}";q={self.quota};w={WINDOW_SECONDS}'


class Limits(DependencyProvider):
    """The limits of this process. Their config: RATE_LIMIT_STORAGE_URI, RATE_LIMIT_SCALE and TRUSTED_PROXIES."""

    def setup(self) -> None:
        config = self.container.config
        scale = config["RATE_LIMIT_SCALE"]
        self._limits = {name: RateLimit(name, max(1, round(quota * scale))) for name, quota in LIMITS.items()}
        redis_uri = config["RATE_LIMIT_STORAGE_URI"]
        self._counts: OwnCounts | SharedCounts = OwnCounts() if redis_uri is None else SharedCounts(redis_uri)
        self.trusted_proxies = TrustedProxies(config["TRUSTED_PROXIES"])
        address_scale = max(1, scale)
        self.in_flight = ConcurrencyLimit(MAX_IN_FLIGHT, MAX_IN_FLIGHT_PER_ADDRESS * address_scale)
        self.large_bodies = ConcurrencyLimit(MAX_LARGE_BODIES, MAX_LARGE_BODIES_PER_ADDRESS * address_scale)

    def get_dependency(self, worker_ctx: Any) -> "Limits":
        return self

    def count(self, name: str, client: str, answer_headers: dict[str, str]) -> None:
        """Count a request of the client, and add the result to the answer's headers. Raises RateLimited."""
        limit = self._limits[name]
        _add(answer_headers, "RateLimit-Policy", limit.policy)
        counted = self._counts.count(f"{name}/{client}")
        if counted is None:
            return
        count, seconds_left = counted
        resets_in_seconds = min(WINDOW_SECONDS, max(1, math.ceil(seconds_left)))
        _add(answer_headers, "RateLimit", f'"{name}";r={max(0, limit.quota - count)};t={resets_in_seconds}')
        if count > limit.quota:
            raise RateLimited(name, limit.quota, resets_in_seconds)


class OwnCounts:
    """The counts of this process. A key's window begins with its first request.

    The memory storage of the package `limits` would start a thread at each count, to forget old ones.
    """

    def __init__(self) -> None:
        self._windows: OrderedDict[str, _Window] = OrderedDict()  # the oldest first, which is the first to end

    def count(self, key: str) -> tuple[int, float]:
        """(requests in this window, seconds until the next window)."""
        now = time.monotonic()
        window = self._windows.get(key)
        if window is None or window.ends_at <= now:
            while self._windows and next(iter(self._windows.values())).ends_at <= now:
                self._windows.popitem(last=False)
            window = self._windows[key] = _Window(ends_at=now + WINDOW_SECONDS)
        window.requests += 1
        return window.requests, window.ends_at - now


@dataclass(slots=True)
class _Window:
    ends_at: float
    requests: int = 0


class SharedCounts:
    """The counts of all gateways with the same Redis."""

    def __init__(self, redis_uri: str) -> None:
        # Imported here: only a gateway with a Redis needs them. redis imports OpenTelemetry where that is installed.
        from limits.storage import storage_from_string
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        storage = storage_from_string(
            redis_uri,
            socket_timeout=STORAGE_SECONDS,
            socket_connect_timeout=STORAGE_SECONDS,
            # No retries: the timeout of `count` could end one in the middle of a reply.
            retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]
        )
        # Its declared type also allows asynchronous storages.
        self._storage = cast(Any, storage)
        self._failures = (self._storage.base_exceptions, OSError, eventlet.Timeout)
        self._is_unreachable = False
        self._retry_at = 0.0

    def count(self, key: str) -> tuple[int, float] | None:
        """(requests in this window, seconds until the next window); None while Redis is unreachable."""
        if self._retry_at > time.monotonic():
            return None
        try:
            # The socket's timeouts do not cover the DNS lookup.
            with eventlet.Timeout(2 * STORAGE_SECONDS):
                count = self._storage.incr(key, WINDOW_SECONDS)
                resets_at = self._storage.get_expiry(key)
        except self._failures as error:
            self._retry_at = time.monotonic() + STORAGE_PAUSE_SECONDS
            if not self._is_unreachable:
                logger.warning("requests are not limited: RATE_LIMIT_STORAGE_URI can't be reached: %r", error)
            self._is_unreachable = True
            return None
        if self._is_unreachable:
            logger.info("requests are limited again")
            self._is_unreachable = False
        return count, resets_at - time.time()


def _add(headers: dict[str, str], name: str, item: str) -> None:
    headers[name] = f"{headers[name]}, {item}" if name in headers else item


class RateLimitMiddleware:
    """WSGI middleware: applies the default limit, and adds the client to the environ.

    client_address  the client's address
    caller          the Caller; None without a valid access token
    token_error     why the token that was sent is not valid, else None
    """

    def __init__(self, app: WSGIApplication, limits: Limits, access_tokens: AccessTokens) -> None:
        self.app = app
        self.limits = limits
        self.access_tokens = access_tokens

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        address = environ["client_address"] = self.limits.trusted_proxies.client_address(environ)
        caller, token_error = self._caller(environ.get("HTTP_AUTHORIZATION"))
        environ["caller"], environ["token_error"] = caller, token_error
        client = client_network(address) if caller is None else f"user {caller.user_id}"
        try:
            self.limits.count(DEFAULT, client, environ["answer_headers"])
        except RateLimited as error:
            if environ["PATH_INFO"] not in PROBES:
                return problem_response(error, Request(environ))(environ, start_response)
        return self.app(environ, start_response)

    def _caller(self, authorization: str | None) -> tuple[Caller | None, str | None]:
        try:
            return self.access_tokens.read_header(authorization), None
        except Unauthenticated as error:
            return None, error.reason


class ConcurrencyLimit:
    """At most `maximum` requests at once, and at most `max_per_address` of one address. taken: the current number."""

    def __init__(self, maximum: float, max_per_address: float) -> None:
        self.maximum, self.max_per_address = maximum, max_per_address
        self.taken = 0
        self._of_address: Counter[str] = Counter()

    @contextmanager
    def take(self, address: str) -> Iterator[None]:
        """Count one request for the block. Raises Overloaded at either limit."""
        if self.taken >= self.maximum or self._of_address[address] >= self.max_per_address:
            raise Overloaded
        self.taken += 1
        self._of_address[address] += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]


class BoundedBody:
    """A WSGI request body that calls `on_large` before it reads beyond LARGE_BODY_BYTES.

    That many bytes have arrived by then: a client that only announces a large body takes no slot.
    """

    def __init__(self, body: InputStream, on_large: Callable[[], object]) -> None:
        self._body = body
        self._on_large = on_large
        self._left: int | None = LARGE_BODY_BYTES

    def read(self, size: int = -1) -> bytes:
        """Like a raw stream's: a part may be shorter than `size`, and only the end is empty."""
        if self._left is not None:
            if self._left:
                part = self._body.read(self._left if size < 0 else min(size, self._left))
                self._left -= len(part)
                return part
            self._on_large()
            self._left = None
        return self._body.read(size)
