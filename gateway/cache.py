"""The catalogue's responses, cached as the bytes that are sent.

Public reads of the catalogue are answered from the cache, before Flask. An entry lives for TTL_SECONDS. It is removed
at once when its product is dropped; lists and categories are removed with any product. Concurrent misses of a key
make one fill. The readers of a fill that began before a drop get its result. It is not stored, and reads after the
drop do not wait for it.
"""

import re
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from eventlet.event import Event
from nameko.extensions import DependencyProvider

TTL_SECONDS = 5
MAX_BYTES = 8 * 1024 * 1024
MAX_REVISIONS = 100_000

Key = tuple[str, ...]

CATALOGUE = "/products"
NOT_MODIFIED = f"{HTTPStatus.NOT_MODIFIED.value} {HTTPStatus.NOT_MODIFIED.phrase}"
OK = f"{HTTPStatus.OK.value} {HTTPStatus.OK.phrase}"


class CachedResponse:
    """A body with its ETag, `"<version>-<hash of the body>"`.

    version: 0 for lists. route: the template of its route. headers: further headers, {name: value}.
    """

    def __init__(
        self, body: bytes, version: int = 0, route: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.body = body
        self.route = route
        self.headers = headers or {}
        self.etag = f'"{version}-{blake2b(body, digest_size=8).hexdigest()}"'

    def respond(self, if_none_match: str | None) -> tuple[str, list[tuple[str, str]], bytes]:
        """(status line, headers, body). The body is empty when the client already has it."""
        headers = [("Cache-Control", "no-cache"), ("ETag", self.etag), *self.headers.items()]
        if if_none_match and etag_matches(if_none_match, self.etag):
            return NOT_MODIFIED, headers, b""
        return OK, [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(self.body)))], self.body


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Whether an If-None-Match header matches. The header is a list of tags, weak or strong, or `*`."""
    return if_none_match.strip() == "*" or etag in re.findall(r'"[\x21\x23-\x7e\x80-\xff]*"', if_none_match)


def key_of(environ: WSGIEnvironment) -> Key:
    """The cache key of a request: its path and its query parameters as sent, the parameters sorted."""
    return environ["RAW_PATH_INFO"], *sorted(filter(None, environ.get("QUERY_STRING", "").split("&")))


class _Fill:
    def __init__(self, product_id: int | None) -> None:
        self.product_id = product_id
        self.done = Event()


class Cache(DependencyProvider):
    """The cache of this process. product_id: None for a response about many products."""

    def __init__(self) -> None:
        # key: (response, expires_at, product_id), oldest first
        self._responses: OrderedDict[Key, tuple[CachedResponse, float, int | None]] = OrderedDict()
        self._keys_by_product: defaultdict[int | None, set[Key]] = defaultdict(
            set
        )  # product_id: the keys of its responses
        self._bytes = 0
        self._fills: dict[Key, _Fill] = {}  # those in progress
        self._revisions: OrderedDict[int, int] = OrderedDict()  # product_id: the latest known revision

    def get_dependency(self, worker_ctx: Any) -> "Cache":
        return self

    def get(self, key: Key) -> CachedResponse | None:
        """The cached response, or None when there is none or it has expired."""
        response, expires_at, _ = self._responses.get(key, (None, 0, None))
        return response if expires_at > time.monotonic() else None

    def fetch(self, key: Key, fill: Callable[[], CachedResponse], product_id: int | None = None) -> CachedResponse:
        """The cached response, or the result of `fill()`. Concurrent reads of a key share one fill."""
        response = self.get(key)
        if response is not None:
            return response
        if key in self._fills:
            return self._fills[key].done.wait()
        own_fill = self._fills[key] = _Fill(product_id)
        try:
            response = fill()
        except BaseException as error:
            own_fill.done.send_exception(error)
            raise
        else:
            if self._fills.get(key) is own_fill:
                self._store(key, response, product_id)
            own_fill.done.send(response)
            return response
        finally:
            if self._fills.get(key) is own_fill:
                del self._fills[key]

    def drop(self, product_ids: Iterable[int]) -> None:
        """Remove the responses that show one of these products. Fills of them in progress are not stored."""
        dropped = {None, *product_ids}
        for product_id in dropped & self._keys_by_product.keys():
            for key in list(self._keys_by_product[product_id]):
                self._forget(key)
        for key, fill in list(self._fills.items()):
            if fill.product_id in dropped:
                del self._fills[key]

    def apply_change(self, product_id: int, revision: int) -> bool:
        """Drop a product that has changed. False when a later revision is known already."""
        if revision < self._revisions.get(product_id, 0):
            return False
        self._revisions[product_id] = revision
        self._revisions.move_to_end(product_id)
        if len(self._revisions) > MAX_REVISIONS:
            self._revisions.popitem(last=False)
        self.drop([product_id])
        return True

    def _store(self, key: Key, response: CachedResponse, product_id: int | None) -> None:
        self._forget(key)
        self._responses[key] = response, time.monotonic() + TTL_SECONDS, product_id
        self._keys_by_product[product_id].add(key)
        self._bytes += _size(key, response)
        while self._bytes > MAX_BYTES:
            self._forget(next(iter(self._responses)))

    def _forget(self, key: Key) -> None:
        response, _, product_id = self._responses.pop(key, (None, 0, None))
        if response is not None:
            self._bytes -= _size(key, response)
            self._keys_by_product[product_id].discard(key)
            if not self._keys_by_product[product_id]:
                del self._keys_by_product[product_id]


def _size(key: Key, response: CachedResponse) -> int:
    return sum(map(len, key)) + len(response.body) + 500


class CacheMiddleware:
    """WSGI middleware: answers reads of the catalogue from the cache, except for admins."""

    def __init__(self, app: WSGIApplication, cache: Cache) -> None:
        self.app = app
        self.cache = cache

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if environ["RAW_PATH_INFO"].startswith(CATALOGUE) and method in ("GET", "HEAD"):
            response = self.cache.get(key_of(environ))
            caller = environ["caller"]
            if response is not None and not (caller is not None and caller.is_admin):
                environ["route"] = response.route
                status, headers, body = response.respond(environ.get("HTTP_IF_NONE_MATCH"))
                start_response(status, headers)
                return [] if method == "HEAD" else [body]
        return self.app(environ, start_response)
