from types import SimpleNamespace

import eventlet
import pytest
from eventlet.event import Event

from gateway import cache as cache_module
from gateway.cache import Cache, CachedResponse, etag_matches, key_of


@pytest.fixture
def cache():
    return Cache()


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(cache_module, "time", clock)
    return clock


def response(text="{}"):
    return CachedResponse(text.encode())


def forbidden():
    raise AssertionError("filled")


class SlowFill:
    """A fill that waits for `finish` or `fail`."""

    def __init__(self):
        self.calls = 0
        self._go_on = Event()

    def __call__(self):
        self.calls += 1
        return self._go_on.wait()

    def finish(self, response):
        self._go_on.send(response)

    def fail(self, error):
        self._go_on.send_exception(error)


def test_a_response_is_kept_for_five_seconds(cache, clock):
    kept = cache.fetch("/products/1", response, product_id=1)

    clock.now += 4.9
    assert cache.fetch("/products/1", forbidden, product_id=1) is kept
    clock.now += 0.2
    assert cache.get("/products/1") is None


def test_a_dropped_product_is_forgotten_and_others_are_not(cache):
    cache.fetch("/products/1", response, product_id=1)
    cache.fetch("/products/2", response, product_id=2)

    cache.drop([1])

    assert cache.get("/products/1") is None
    assert cache.get("/products/2") is not None


def test_dropping_any_product_drops_lists_and_categories(cache):
    for key in ("/products", "/products?limit=5", "/products/categories"):
        cache.fetch(key, response)

    cache.drop([12345])

    assert not any(cache.get(key) for key in ("/products", "/products?limit=5", "/products/categories"))


def test_a_hundred_concurrent_misses_make_one_fill(cache):
    fill = SlowFill()
    readers = [eventlet.spawn(cache.fetch, "/products", fill) for _ in range(100)]
    eventlet.sleep(0)

    fill.finish(response("[]"))

    assert {reader.wait().body for reader in readers} == {b"[]"}
    assert fill.calls == 1


def test_a_failed_fill_fails_all_its_readers_and_is_not_kept(cache):
    fill = SlowFill()
    readers = [eventlet.spawn(cache.fetch, "/products", fill) for _ in range(3)]
    eventlet.sleep(0)

    fill.fail(LookupError("gone"))

    for reader in readers:
        with pytest.raises(LookupError):
            reader.wait()
    assert cache.fetch("/products", response).body == b"{}"


@pytest.mark.parametrize(("key", "product_id"), [("/products/1", 1), ("/products", None)])
def test_a_fill_that_began_before_a_drop_is_not_kept(cache, key, product_id):
    fill = SlowFill()
    reader = eventlet.spawn(cache.fetch, key, fill, product_id)
    eventlet.sleep(0)
    cache.drop([1])

    fill.finish(response("old"))

    assert reader.wait().body == b"old"
    assert cache.get(key) is None


def test_a_read_after_a_drop_does_not_wait_for_an_earlier_fill(cache):
    old = SlowFill()
    eventlet.spawn(cache.fetch, "/products/1", old, 1)
    eventlet.sleep(0)
    cache.drop([1])

    fresh = cache.fetch("/products/1", lambda: response("new"), product_id=1)
    old.finish(response("old"))
    eventlet.sleep(0)

    assert fresh.body == b"new"
    assert cache.get("/products/1").body == b"new"


def test_a_drop_of_another_product_does_not_cancel_a_fill(cache):
    fill = SlowFill()
    eventlet.spawn(cache.fetch, "/products/1", fill, 1)
    eventlet.sleep(0)
    cache.drop([2])

    fill.finish(response("still true"))
    eventlet.sleep(0)

    assert cache.get("/products/1").body == b"still true"


def test_an_older_revision_changes_nothing(cache):
    assert cache.apply_change(1, revision=7)
    cache.fetch("/products/1", response, product_id=1)

    assert not cache.apply_change(1, revision=6)

    assert cache.get("/products/1") is not None


def test_the_cache_is_bounded_and_drops_the_oldest_first(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "MAX_BYTES", 10_000)

    for number in range(100):
        cache.fetch(f"/products?offset={number}", lambda: response("x" * 1000))

    assert cache.get("/products?offset=0") is None
    assert cache.get("/products?offset=99") is not None
    assert len(cache._responses) == len(cache._keys_by_product[None]) < 10


def test_the_number_of_known_revisions_is_bounded(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "MAX_REVISIONS", 10)

    for product_id in range(100):
        cache.apply_change(product_id, revision=1)

    assert len(cache._revisions) == 10


def test_the_order_of_query_parameters_does_not_change_the_key():
    queries = "limit=5&offset=1&", "offset=1&limit=5"

    keys = {key_of({"RAW_PATH_INFO": "/products", "QUERY_STRING": query}) for query in queries}

    assert len(keys) == 1


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('"3-ab"', True),
        ('W/"3-ab"', True),
        ('"1-xx", "3-ab"', True),
        ('"1-xx" ,W/"3-ab"', True),
        ("*", True),
        (" * ", True),
        ('"3-abc"', False),
        ("3-ab", False),
        ("", False),
        ('"', False),
        ('"*"', False),
    ],
)
def test_if_none_match_is_a_list_of_tags_or_a_star(header, expected):
    assert etag_matches(header, '"3-ab"') is expected


def test_an_etag_carries_the_version_and_changes_with_the_body():
    first, second = CachedResponse(b"{}", version=3), CachedResponse(b"[]", version=3)

    assert first.etag.startswith('"3-')
    assert first.etag != second.etag
