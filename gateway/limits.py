"""How much one may ask: requests in a time, requests at once, and large bodies at once.

    @blp.route("/users/login", methods=["POST"])
    @limited("login")
    def login(): ...

Every request counts against the default limit, of the user whose access token it carries, else of
its client's address. A view that is marked counts against the limit of that name, too, always by
address. Every answer tells what is left, as draft-ietf-httpapi-ratelimit-headers-10 has it.

The counts are this process's, or in the Redis of RATE_LIMIT_STORAGE_URI those of all gateways.
Not guaranteed: that anything is counted while that Redis is away. Requests pass then.
"""

import logging
import math
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import eventlet
from limits.storage import storage_from_string
from nameko.extensions import DependencyProvider
from werkzeug import Request

from gateway.addresses import TrustedProxies, client_network
from gateway.errors import Overloaded, RateLimited, Unauthenticated, problem_response

logger = logging.getLogger(__name__)

DEFAULT = "default"
WINDOW_SECONDS = 60
# Requests in WINDOW_SECONDS, before RATE_LIMIT_SCALE.
LIMITS = {DEFAULT: 600, "login": 30, "refresh": 60, "register": 20, "reset": 10}
# Counted, never refused: behind a proxy that isn't trusted customers would use up the orchestrator's quota.
PROBES = ("/livez", "/readyz", "/health")
STORAGE_SECONDS = 0.25
STORAGE_PAUSE_SECONDS = 5
# At once: of all clients together, and of one address, which a RATE_LIMIT_SCALE above 1 multiplies.
MAX_IN_FLIGHT, MAX_IN_FLIGHT_PER_ADDRESS = 512, 64
# What a body takes of memory without being counted.
LARGE_BODY_BYTES = 16 * 1024
MAX_LARGE_BODIES, MAX_LARGE_BODIES_PER_ADDRESS = 128, 8


def limited(name):
    """Count a view's calls by client address, too, against the limit of that name in LIMITS."""

    if name not in LIMITS:
        raise ValueError(f"There is no limit {name!r} in LIMITS.")

    def decorator(view):
        view.limit = name
        return view

    return decorator


@dataclass(frozen=True, slots=True)
class Limit:
    name: str
    quota: int

    @property
    def policy(self):
        return f'"{self.name}";q={self.quota};w={WINDOW_SECONDS}'


class Limits(DependencyProvider):
    """Counts, with config's RATE_LIMIT_STORAGE_URI, RATE_LIMIT_SCALE and TRUSTED_PROXIES. One for the process."""

    def setup(self):
        config = self.container.config
        scale = config["RATE_LIMIT_SCALE"]
        self._limits = {name: Limit(name, max(1, round(quota * scale))) for name, quota in LIMITS.items()}
        self._storage = _storage(config["RATE_LIMIT_STORAGE_URI"])
        self.trusted_proxies = TrustedProxies(config["TRUSTED_PROXIES"])
        address_scale = max(1, scale)
        self.in_flight = ConcurrencyLimit(MAX_IN_FLIGHT, MAX_IN_FLIGHT_PER_ADDRESS * address_scale)
        self.large_bodies = ConcurrencyLimit(MAX_LARGE_BODIES, MAX_LARGE_BODIES_PER_ADDRESS * address_scale)
        self._failures = (self._storage.base_exceptions, OSError, eventlet.Timeout)
        self._is_unreachable = False
        self._retry_at = 0

    def get_dependency(self, worker_ctx):
        return self

    def count(self, name, client, answer_headers):
        """Count a request of `client`, and tell them in the answer's headers. Raises RateLimited."""
        limit = self._limits[name]
        _add(answer_headers, "RateLimit-Policy", limit.policy)
        counted = self._count(f"{name}/{client}")
        if counted is None:
            return
        count, resets_in_seconds = counted
        _add(answer_headers, "RateLimit", f'"{name}";r={max(0, limit.quota - count)};t={resets_in_seconds}')
        if count > limit.quota:
            raise RateLimited(name, limit.quota, resets_in_seconds)

    def _count(self, key):
        """(requests in this window, seconds until the next); None while the storage is away."""
        if self._retry_at > time.monotonic():
            return None
        try:
            # The socket's own timeouts know nothing of looking a name up.
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
        return count, min(WINDOW_SECONDS, max(1, math.ceil(resets_at - time.time())))


def _storage(redis_uri):
    if redis_uri is None:
        return storage_from_string("memory://")
    # Here, since it imports what there is of OpenTelemetry.
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return storage_from_string(
        redis_uri,
        socket_timeout=STORAGE_SECONDS,
        socket_connect_timeout=STORAGE_SECONDS,
        # More tries would run into the timeout of _count, which may cut a reply in two.
        retry=Retry(NoBackoff(), 0),
    )


def _add(headers, name, item):
    headers[name] = f"{headers[name]}, {item}" if name in headers else item


class RateLimitMiddleware:
    """WSGI middleware: the default limit. Also settles who asks, in the environ.

    client_address. caller: None without a valid access token. token_error: what is wrong with the one that was
    sent, which a public route doesn't care about; None when there is none or a good one.
    """

    def __init__(self, app, limits, access_tokens):
        self.app = app
        self.limits = limits
        self.access_tokens = access_tokens

    def __call__(self, environ, start_response):
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

    def _caller(self, authorization):
        try:
            return self.access_tokens.read_header(authorization), None
        except Unauthenticated as error:
            return None, error.reason


class ConcurrencyLimit:
    """At most `maximum` requests at once, and at most `max_per_address` of one address. taken: how many run now."""

    def __init__(self, maximum, max_per_address):
        self.maximum, self.max_per_address = maximum, max_per_address
        self.taken = 0
        self._of_address = Counter()

    @contextmanager
    def take(self, address):
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
    """A request body for WSGI. `on_large` is called once more than LARGE_BODY_BYTES are asked for.

    By then so much has arrived: a client that only says that it will send a large body holds nothing.
    """

    def __init__(self, body, on_large):
        self._body = body
        self._on_large = on_large
        self._left = LARGE_BODY_BYTES

    def read(self, size=-1):
        """As a raw stream's: a part may be shorter than asked for, and only the end is empty."""
        if self._left is not None:
            if self._left:
                part = self._body.read(self._left if size < 0 else min(size, self._left))
                self._left -= len(part)
                return part
            self._on_large()
            self._left = None
        return self._body.read(size)
