"""The gateway's metrics: requests by route, and sockets by state."""

import pytest
import requests

from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.waiting import wait_for

COUNT = "forage_http_request_duration_seconds_count"


@pytest.fixture
def watched(shop):
    return Watched(shop.gateway)


def test_cached_and_uncached_requests_are_counted_by_route_template(watched, anonymous, new_product):
    product = new_product()

    answers = [anonymous.get(f"/products/{product['id']}").status_code for _ in range(3)]

    assert answers == [200, 200, 200]
    assert watched.count(COUNT, route="/products/{product_id}", method="GET", status="200") == 3
    assert watched.count(COUNT, route="/products", method="POST", status="201") == 1
    assert 0 < watched.count("forage_http_request_duration_seconds_sum", route="/products/{product_id}") < 5


def test_refusals_are_counted_under_their_route_and_status(watched, anonymous):
    anonymous.get("/products/99999999")
    anonymous.get("/orders")

    assert watched.count(COUNT, route="/products/{product_id}", status="404") == 1
    assert watched.count(COUNT, route="/orders", status="401") == 1


def test_invented_paths_and_methods_make_no_labels(watched, shop, anonymous):
    anonymous.get("/made-up/1")
    anonymous.delete("/livez")
    requests.request("MADEUP", f"{shop.url}/products")

    assert watched.count(COUNT, route="unmatched", method="GET", status="404") == 1
    assert watched.count(COUNT, route="unmatched", method="DELETE", status="405") == 1
    assert watched.count(COUNT, route="unmatched", method="other") == 1
    exposed = watched.get("/metrics").text.lower()
    assert "made-up" not in exposed and "madeup" not in exposed


def test_sockets_are_counted_by_state_and_not_as_requests(watched, open_feed, new_customer):
    customer = new_customer()
    before = {state: watched.value("forage_websockets", state=state) or 0 for state in ("anonymous", "authenticated")}

    def more(state):
        return watched.value("forage_websockets", state=state) - before[state]

    anonymous, known = open_feed(), open_feed(customer.token)
    assert (more("anonymous"), more("authenticated")) == (1, 1)

    anonymous.send(type="authenticate", token=customer.token)
    anonymous.receive_until("authenticated")
    assert (more("anonymous"), more("authenticated")) == (0, 2)

    anonymous.close()
    known.close()
    wait_for(lambda: (more("anonymous"), more("authenticated")) == (0, 0))
    assert watched.count(COUNT, route="/ws/notifications") == 0
