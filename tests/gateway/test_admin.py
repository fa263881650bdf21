"""The back office: its sums, and the parked messages."""

from datetime import date, timedelta

import pytest
from eventlet.event import Event

from gateway import Gateway
from gateway.routes import admin as admin_module
from nameko_reliable import parking
from nameko_reliable.messages import to_payload
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for
from services.notifications import Notifications
from services.orders import Orders
from services.products import Products
from tests.factories import order_created

from .conftest import Client, problem

SECTIONS = ("orders", "stock", "mails", "parked")
QUEUES = {
    "products": "evt-orders-order.created--products.commit_reservation",
    "notifications": "evt-orders-order.created--notifications.confirm_order",
}


@pytest.fixture
def open_office(config, run_service, new_token):
    """`open_office()` is an admin's client at a gateway of this test's own, without services."""

    def open_office(**settings):
        run_service(Gateway, **settings)
        token = new_token(secret=config["JWT_SECRET"], role="admin")
        return Client(f"http://127.0.0.1:{config['GATEWAY_PORT']}", token)

    return open_office


@pytest.fixture
def office(open_office):
    return open_office()


def sections_of(office):
    summary = office.get("/admin/summary").json()
    return {name: summary[name] for name in SECTIONS}


# Sums


def test_an_order_counts_on_its_day_and_a_cancelled_one_only_by_status(admin, customer, new_product):
    # Compared by the order's own day, as the test may run over midnight.
    before = admin.get("/admin/summary").json()["orders"]
    line = {"product_id": new_product(price="12.30")["id"], "quantity": 2}
    placed = customer.post("/orders", {"items": [line]}).json()
    cancelled = customer.post("/orders", {"items": [line]}).json()
    customer.patch(f"/orders/{cancelled['id']}/status", {"status": "cancelled"})

    answer = admin.get("/admin/summary")

    after = answer.json()["orders"]
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    assert answer.json().keys() == {"days", *SECTIONS}
    assert day_of(placed, after)["orders"] == day_of(placed, before)["orders"] + 1
    assert cents(day_of(placed, after)) == cents(day_of(placed, before)) + 2460
    assert after["daily"][-1] == {"date": after["daily"][-1]["date"], **after["today"]}
    more = {status: after["by_status"][status] - before["by_status"][status] for status in after["by_status"]}
    assert more == {"pending": 1, "confirmed": 0, "shipped": 0, "delivered": 0, "cancelled": 1}


def day_of(order, sums):
    nothing = {"orders": 0, "revenue": "0.00"}
    return next((day for day in sums["daily"] if day["date"] == order["created_at"][:10]), nothing)


def cents(sales):
    return int(sales["revenue"].replace(".", ""))


@pytest.mark.parametrize(("query", "days"), [("", 30), ("?days=1", 1), ("?days=90", 90)])
def test_the_summary_has_an_entry_for_every_day(admin, query, days):
    summary = admin.get(f"/admin/summary{query}").json()

    dates = [date.fromisoformat(day["date"]) for day in summary["orders"]["daily"]]
    assert summary["days"] == len(dates) == days
    assert dates == [dates[-1] - timedelta(days=age) for age in reversed(range(days))]


@pytest.mark.parametrize("days", ["0", "91", "-1", "1.5", "many", ""])
def test_days_out_of_bounds_are_refused(admin, days):
    answer = admin.get(f"/admin/summary?days={days}")

    assert answer.status_code == 422
    assert problem(answer)["errors"].keys() == {"days"}


def test_low_stock_products_are_shown_as_in_the_catalogue(admin, new_product):
    product = new_product(stock_quantity=0, name="! Truffle")

    stock = admin.get("/admin/summary").json()["stock"]

    assert stock["low_stock_threshold"] == 5
    assert stock["low"] >= 1
    assert product in stock["products"]


def test_the_sections_of_an_unreachable_service_are_null(office, run_service):
    run_service(Orders)
    run_service(Notifications)

    sections = wait_for(
        lambda: (found := sections_of(office))["orders"] and found["parked"]["notifications"] is not None and found
    )

    assert sections["stock"] is None
    assert sections["mails"] == {"failed": 0, "pending": 0, "uncertain": 0}
    assert sections["parked"] == {"products": None, "notifications": 0}


def test_all_sections_are_null_without_any_service(office):
    answer = office.get("/admin/summary?days=7")

    parked = {"products": None, "notifications": None}
    assert answer.status_code == 200
    assert answer.json() == {"days": 7, "orders": None, "stock": None, "mails": None, "parked": parked}


def test_the_sections_of_a_slow_service_are_null(office, run_service, monkeypatch):
    monkeypatch.setattr(admin_module, "SUMMARY_SECONDS", 1)
    may_answer = Event()

    class SlowOrders:
        name = "orders"

        @rpc
        def summarize_orders(self, days):
            may_answer.wait()

    run_service(Products)
    run_service(SlowOrders)

    sections = wait_for(
        lambda: (found := sections_of(office))["stock"] and found["parked"]["products"] is not None and found
    )

    may_answer.send()
    assert sections["orders"] is None
    assert sections["parked"] == {"products": 0, "notifications": None}


@pytest.mark.parametrize("path", ["/admin/summary", "/admin/parked"])
def test_the_back_office_gets_503_without_the_broker(open_office, proxy, path):
    office = open_office(AMQP_URI=proxy.uri)
    wait_for(lambda: office.get(path).status_code == 200)

    proxy.go_away()

    answer = office.get(path)
    assert answer.status_code == 503
    assert problem(answer)["type"] == "service-unavailable"


# Parked messages


@pytest.fixture
def parked(office, run_service, broker):
    """`parked(notifications="not JSON")` makes services park these messages, and returns the parked messages."""
    run_service(Products)
    run_service(Notifications)

    def park(**bodies):
        before = office.get("/admin/parked").json()["total"]
        for service, body in bodies.items():
            broker.publish(body, queue=QUEUES[service])
        return wait_for(lambda: (page := office.get("/admin/parked").json())["total"] == before + len(bodies) and page)

    wait_for(lambda: set(QUEUES.values()) <= set(broker.queues()))
    wait_for(lambda: office.get("/admin/parked").json()["away"] == [])
    return park


def test_parked_messages_of_all_services_are_listed(office, parked):
    page = parked(products="no JSON", notifications="no JSON")

    assert {name: page[name] for name in ("total", "limit", "offset", "away")} == {
        "total": 2,
        "limit": 20,
        "offset": 0,
        "away": [],
    }
    by_service = {message["service"]: message for message in page["messages"]}
    assert by_service.keys() == {"products", "notifications"}
    message = by_service["products"]
    assert message.pop("id").isalnum()
    assert message.pop("parked_at").endswith("Z")
    assert message == {
        "service": "products",
        "queue": QUEUES["products"],
        "reason": "not JSON",
        "attempts": 1,
        "body": "no JSON",
    }
    assert sections_of(office)["parked"] == {"products": 1, "notifications": 1}


def test_parked_messages_are_paged_newest_first(office, parked, broker):
    for service, hour in (("products", 1), ("notifications", 3), ("products", 2), ("notifications", 4)):
        headers = {"x-parked-at": hour * 3600}
        broker.publish(str(hour), queue=f"parked.{service}", message_id=f"m-{hour}", headers=headers)
    wait_for(lambda: office.get("/admin/parked").json()["total"] == 4)

    answers = [office.get(f"/admin/parked?limit=3&{place}") for place in ("page=1", "offset=3", "page=3")]

    pages = [answer.json() for answer in answers]
    assert [[message["body"] for message in page["messages"]] for page in pages] == [["4", "3", "2"], ["1"], []]
    assert [page["total"] for page in pages] == [4, 4, 4]
    assert [answer.headers["X-Total-Count"] for answer in answers] == ["4", "4", "4"]
    assert [set(answer.links) for answer in answers] == [
        {"first", "next", "last"},
        {"first", "prev", "last"},
        {"first", "prev", "last"},
    ]


def test_page_links_never_lead_to_a_refused_page(office, parked, broker):
    with broker.channel() as channel:
        for _ in range(1100):
            message = channel.prepare_message(b"x", content_encoding="binary")
            channel.basic_publish(message, exchange="", routing_key="parked.products")
    wait_for(lambda: office.get("/admin/parked").json()["total"] == 1100)

    answers = [office.get(f"/admin/parked?{query}") for query in ("limit=30&offset=990", "limit=30&page=34", "limit=7")]

    queries = {link["url"] for answer in answers for link in answer.links.values()}
    assert {office.get(f"/admin/parked{query}").status_code for query in queries} == {200}
    assert ["next" in answer.links for answer in answers] == [False, False, True]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "offset=-1", "offset=1001", "page=0", "page=52", "page=1&offset=0"]
)
def test_a_page_out_of_bounds_is_refused(admin, query):
    assert admin.get(f"/admin/parked?{query}").status_code == 422


def test_the_body_of_a_huge_message_is_cut(parked):
    [message] = parked(products="x" * 1_000_000)["messages"]

    assert len(message["body"]) == 2001


def test_unreachable_services_are_listed_as_away(office, run_service):
    run_service(Products)

    page = wait_for(lambda: (page := office.get("/admin/parked").json())["away"] == ["notifications"] and page)

    assert (page["messages"], page["total"]) == ([], 0)


def test_a_message_is_replayed(office, parked):
    [message] = parked(products="no JSON")["messages"]
    path = f"/admin/parked/products/{message['id']}"

    answer = office.post(f"{path}/replay")

    # Its handler fails again, so it is parked under another id.
    [again] = wait_for(lambda: office.get("/admin/parked").json()["messages"])
    assert (answer.status_code, answer.content) == (204, b"")
    assert (again["body"], again["id"] == message["id"]) == ("no JSON", False)
    assert office.post(f"{path}/replay").status_code == 404


def test_a_message_that_its_handler_accepts_is_gone_after_its_replay(office, parked, broker, smtp):
    event = order_created()
    headers = {"x-parked-from": QUEUES["notifications"]}
    broker.publish(to_payload(event), queue="parked.notifications", message_id="m-1", headers=headers)
    wait_for(lambda: office.get("/admin/parked").json()["total"] == 1)

    answer = office.post("/admin/parked/notifications/m-1/replay")

    assert answer.status_code == 204
    assert wait_for(lambda: smtp.messages(to=event.user_email))
    assert office.get("/admin/parked").json()["total"] == 0


def test_a_message_is_discarded_once(office, parked):
    [message] = parked(notifications="no JSON")["messages"]
    path = f"/admin/parked/notifications/{message['id']}"

    answers = [office.delete(path) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [204, 404]
    assert problem(answers[1])["type"] == "parked-message-not-found"
    assert office.get("/admin/parked").json()["total"] == 0


def test_a_message_without_a_source_queue_can_only_be_discarded(office, parked, broker):
    broker.publish("x", queue="parked.products", message_id="foreign")
    [message] = wait_for(lambda: office.get("/admin/parked").json()["messages"])

    answer = office.post("/admin/parked/products/foreign/replay")

    assert (message["queue"], message["parked_at"]) == (None, None)
    assert answer.status_code == 409
    assert problem(answer)["type"] == "not-replayable"
    assert office.delete("/admin/parked/products/foreign").status_code == 204


def test_selected_messages_are_discarded_and_the_others_replayed(office, parked, broker, smtp):
    parked(products="no JSON", notifications="no JSON")
    event = order_created()
    headers = {"x-parked-from": QUEUES["notifications"], "x-parked-reason": "SMTP was slow"}
    broker.publish(to_payload(event), queue="parked.notifications", headers=headers)
    wait_for(lambda: office.get("/admin/parked").json()["total"] == 3)

    def settle(action, **selection):
        return office.post(f"/admin/parked/{action}", {"service": "notifications", **selection})

    answers = [
        settle("discard", queue=QUEUES["products"]),
        settle("discard", queue=QUEUES["notifications"], reason="JSON"),
        settle("replay"),
        settle("replay", left=0),
    ]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.json() for answer in answers] == [
        {"done": 0, "kept": 2, "left": 0},
        {"done": 1, "kept": 1, "left": 0},
        {"done": 1, "kept": 0, "left": 0},
        {"done": 0, "kept": 0, "left": 0},
    ]
    assert wait_for(lambda: smtp.messages(to=event.user_email))
    [left] = office.get("/admin/parked").json()["messages"]
    assert left["service"] == "products"


@pytest.mark.parametrize(
    "selection",
    [
        *({"left": -1}, {"left": "all"}, {"queue": ""}, {"queue": 7}, {"reason": "x" * 501}, {"services": "products"}),
        *({"service": service} for service in ("orders", "users", "mushrooms", "__class__", "within", None)),
    ],
    ids=str,
)
def test_an_invalid_selection_is_refused(admin, selection):
    for action in ("replay", "discard"):
        answer = admin.post(f"/admin/parked/{action}", {"service": "products", **selection})
        assert answer.status_code == 422
        assert list(answer.json()["errors"]) == list(selection)


def test_a_busy_parking_queue_gets_503_and_is_not_listed_as_away(office, run_service, monkeypatch):
    monkeypatch.setattr(parking, "LOCK_SECONDS", 0.3)
    run_service(Notifications)
    products = run_service(Products)
    [lot] = [provider for provider in products.dependencies if isinstance(provider, parking.ParkingLot)]
    wait_for(lambda: office.get("/admin/parked").json()["away"] == [])

    with lot._exclusive_reader():
        answer = office.get("/admin/parked")

    assert (answer.status_code, problem(answer)["type"]) == (503, "parking-lot-busy")
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("service", ["orders", "users", "mushrooms", "__class__", "within"])
def test_a_service_without_a_parking_queue_is_not_found(admin, service):
    path = f"/admin/parked/{service}"
    for answer in (
        admin.delete(f"{path}/1"),
        admin.post(f"{path}/1/replay"),
    ):
        assert answer.status_code == 404
        assert problem(answer)["type"] == "not-found"


def test_discarding_a_message_of_an_unreachable_service_gets_503(office):
    assert office.delete("/admin/parked/products/1").status_code == 503
