import pytest

from dev import client

pytestmark = pytest.mark.server


def test_the_frontends_types_match_the_api():
    kept = client.TYPES.read_text()

    current = client.types()

    assert kept == current, "The HTTP API has changed: run `make client`."
