"""The paging of all lists: `limit` with `offset` or `page`, `X-Total-Count`, and `Link`."""

from itertools import chain
from uuid import uuid4

import pytest
import requests

from nameko_reliable.testing.waiting import wait_for

ITEMS = 5


@pytest.fixture(scope="module")
def lists(new_customer, new_product, admin):
    """{path: (client, query, member)} of lists with five items each. member: None where the answer is the list."""
    category, name = uuid4().hex, f"pager{uuid4().hex[:8]}"
    product, *_ = [new_product(category=category) for _ in range(ITEMS)]
    customer = new_customer()
    for _ in range(ITEMS):
        assert customer.post("/orders", {"items": [{"product_id": product["id"], "quantity": 1}]}).status_code == 201
        account = {
            "email": f"{name}{uuid4().hex}@forage.example",
            "username": uuid4().hex,
            "password": "boletus edulis",
        }
        assert admin.post("/users/register", account).status_code == 201
    wait_for(lambda: customer.get("/notifications").json()["total"] == ITEMS)
    return {
        "/products": (customer, {"category": category}, "items"),
        "/users": (admin, {"q": name}, "items"),
        "/orders": (customer, {"status": "pending"}, None),
        "/notifications": (customer, {"after_id": 0}, "notifications"),
    }


@pytest.fixture(params=["/products", "/users", "/orders", "/notifications"])
def get_page(request, lists):
    """`get_page(limit=2)` is (ids, X-Total-Count, {relation: query} of the links)."""
    client, query, member = lists[request.param]

    def get_page(**position):
        answer = client.get(request.param, params={**query, **position})
        assert answer.status_code == 200, answer.text
        items = answer.json()[member] if member else answer.json()
        links = {name: link["url"] for name, link in answer.links.items()}
        return [item["id"] for item in items], answer.headers["X-Total-Count"], links

    get_page.follow = lambda link: requests.compat.urljoin(client.url + request.param, link)
    get_page.headers = {"Authorization": f"Bearer {client.token}"}
    get_page.member = member
    return get_page


@pytest.mark.parametrize("first", [{"page": 1}, {"offset": 0}, {}])
def test_the_links_lead_through_the_whole_list(get_page, first):
    everything, total, _ = get_page(limit=100)
    ids, _, links = get_page(limit=2, **first)

    pages = [ids]
    while "next" in links:
        answer = requests.get(get_page.follow(links["next"]), headers=get_page.headers, timeout=15)
        items = answer.json()[get_page.member] if get_page.member else answer.json()
        pages.append([item["id"] for item in items])
        links = {name: link["url"] for name, link in answer.links.items()}

    assert [len(page) for page in pages] == [2, 2, 1]
    assert [*chain(*pages)] == everything
    assert total == str(ITEMS)


def test_a_page_and_its_offset_give_the_same_list(get_page):
    by_page, by_offset = get_page(page=2, limit=2), get_page(offset=2, limit=2)

    assert by_page[:2] == by_offset[:2]
    assert {name: position(link) for name, link in by_page[2].items()} == {
        "first": "page=1",
        "prev": "page=1",
        "next": "page=3",
        "last": "page=3",
    }
    assert {name: position(link) for name, link in by_offset[2].items()} == {
        "first": "offset=0",
        "prev": "offset=0",
        "next": "offset=4",
        "last": "offset=4",
    }


def test_a_page_beyond_the_end_is_empty_and_links_back(get_page):
    ids, total, links = get_page(page=9, limit=2)

    assert (ids, total) == ([], str(ITEMS))
    assert {name: position(link) for name, link in links.items()} == {
        "first": "page=1",
        "prev": "page=3",
        "last": "page=3",
    }


def test_an_offset_beyond_the_end_links_back_to_a_page_with_items(get_page):
    ids, _, links = get_page(offset=18, limit=10)

    assert ids == []
    assert {name: position(link) for name, link in links.items()} == {
        "first": "offset=0",
        "prev": "offset=0",
        "last": "offset=0",
    }


def position(link):
    return next(part for part in link.removeprefix("?").split("&") if part.startswith(("page=", "offset=", "skip=")))


def test_the_older_parameter_names_still_work(lists):
    customer, _, _ = lists["/orders"]

    orders = customer.get("/orders?skip=4&limit=2")
    notifications = customer.get("/notifications?page=3&page_size=2")

    assert (len(orders.json()), len(notifications.json()["notifications"])) == (1, 1)
    assert position(orders.links["prev"]["url"]) == "skip=2"
    assert position(notifications.links["prev"]["url"]) == "page=2"


@pytest.mark.parametrize(
    "query", ["page=0", "page=x", "offset=-1", "page=1&offset=0", "limit=0", "limit=101", "page=99999999999999"]
)
@pytest.mark.parametrize("path", ["/products", "/users", "/orders", "/notifications"])
def test_an_invalid_or_doubled_position_is_refused(admin, path, query):
    answer = admin.get(f"{path}?{query}")

    assert answer.status_code == 422
    assert answer.json()["errors"].keys() <= {"page", "offset", "limit"}


@pytest.mark.parametrize(
    "query", ["/orders?skip=0&page=1", "/orders?skip=0&offset=0", "/notifications?limit=5&page_size=5"]
)
def test_an_older_name_together_with_the_newer_one_is_refused(customer, query):
    assert customer.get(query).status_code == 422
