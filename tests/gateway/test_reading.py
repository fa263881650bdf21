import pytest

from contracts.types import InvalidInput
from gateway.api import read_json, read_query
from gateway.errors import MalformedRequest
from gateway.schemas import OrderQuery, ProductQuery


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b"\xff\xfe{}",
        b'{"a": "\xc3\x28"}',
        b"\xef\xbb\xbf{}",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b"NaN",
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": -1e400}',
        b"1" * 5000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{} {}",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_invalid_json_is_malformed(body):
    with pytest.raises(MalformedRequest):
        read_json(body)


def test_valid_json_is_read():
    text = '{"name": "🍄 فطر", "numbers": [1, -2.5, 1e3], "nothing": null, "yes": true}'

    assert read_json(text.encode()) == {
        "name": "🍄 فطر",
        "numbers": [1, -2.5, 1000.0],
        "nothing": None,
        "yes": True,
    }


def test_query_strings_are_decoded():
    assert read_query(b"name=%F0%9F%8D%84+x&empty=") == {"name": "🍄 x", "empty": ""}


@pytest.mark.parametrize("query", [b"name=%ff", b"name=\xff", b"%c3%28=1", b"&".join(b"a%d=1" % n for n in range(51))])
def test_unreadable_query_strings_are_malformed(query):
    with pytest.raises(MalformedRequest):
        read_query(query)


def test_a_repeated_parameter_is_named():
    with pytest.raises(InvalidInput) as refusal:
        read_query(b"limit=1&offset=2&limit=1")

    assert refusal.value.errors.keys() == {"limit"}


def test_blank_search_terms_are_ignored():
    query = ProductQuery().load({"name": "", "category": " ", "sort_by": ""})

    assert (query["name"], query["category"], query["sort_by"]) == (None, None, "-created_at")


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        ("2026-11-22", "2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z"),
        ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z"),
        ("2026-11-22T10:00:00", "2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z"),
        ("2026-11-22T10:00:00+02:00", "2026-11-22T08:00:00Z", "2026-11-22T08:00:00Z"),
        ("2026-11-22T10:00:00 02:00", "2026-11-22T08:00:00Z", "2026-11-22T08:00:00Z"),
    ],
)
def test_a_bare_date_covers_the_whole_day_and_times_are_in_utc(given, start, end):
    query = OrderQuery().load({"all": "true", "from": given, "to": given})

    assert (query["created_from"], query["created_to"]) == (start, end)


@pytest.mark.parametrize(
    "given", ["yesterday", "2026-13-01", "0000-01-01", "9999-12-31", "0001-01-01T00:00+14:00", "1e9"]
)
def test_an_invalid_time_is_refused(given):
    assert "to" in OrderQuery().validate({"all": "true", "to": given})
