"""ops.resend: events that were deleted with their queue are sent again, and handled ones have no second effect."""

from datetime import UTC, datetime, timedelta

import pytest

from contracts.orders import OrderCreated, OrderStatusUpdated
from contracts.users import UserPasswordResetRequested, UserRegistered
from nameko_reliable.amqp.queues import handler_queue
from nameko_reliable.testing.waiting import wait_for
from ops.resend import main as resend
from services.notifications import Notifications
from services.orders import Orders
from services.products import Products
from services.users import Users
from tests.factories import a_line, a_product, an_account, place_order


@pytest.fixture
def environment(own_shop, monkeypatch):
    """The environment of a container of the image."""
    for service in ("orders", "users"):
        monkeypatch.setenv(f"{service.upper()}_DB_URI", own_shop.config["DB_URIS"][service])


def since(age):
    return (datetime.now(UTC) - age).isoformat()


def delete_queues(shop, service, *event_classes):
    """Delete queues with their messages. Returns the number of messages."""
    lost = 0
    for event_class in event_classes:
        [method] = [method for subscriber, method in event_class.subscribers if subscriber == service]
        queue = handler_queue(event_class, service, method, shop.config).name
        lost += shop.broker.depth(queue)
        with shop.broker.channel() as channel:
            channel.queue_delete(queue)
    return lost


def wait_until_sent(shop, *services):
    for service in services:
        wait_for(lambda service=service: shop.outbox(service).pending() == [])


def test_resent_events_send_only_the_missing_mails(own_shop, environment, smtp):
    for service in (Products, Orders, Users):
        own_shop.run(service)
    notifications = own_shop.run(Notifications)
    product = own_shop.rpc.products.create_product(**a_product(stock_quantity=10))
    early, late = an_account(), an_account()
    own_shop.rpc.users.register(**early)
    order = place_order(own_shop.rpc, a_line(product), customer={"user_id": 1, "user_email": early["email"]})
    wait_for(lambda: len(smtp.messages(to=early["email"])) == 2)
    # Placed by a release before 0.1.0, whose random event ids cannot be made again.
    own_shop.sql("notifications", "UPDATE notifications SET event_id = gen_random_uuid() WHERE order_id IS NOT NULL")
    notifications.stop()
    own_shop.rpc.users.register(**late)
    own_shop.rpc.users.request_password_reset(email=early["email"])
    own_shop.rpc.orders.update_status(order_id=order["id"], status="confirmed")
    wait_for(lambda: own_shop.sql("users", "SELECT count(*) FROM mail_requests WHERE answered_at IS NULL") == [(0,)])
    wait_until_sent(own_shop, Orders, Users)
    kinds = (OrderCreated, OrderStatusUpdated, UserRegistered, UserPasswordResetRequested)
    lost = delete_queues(own_shop, "notifications", *kinds)

    # The second run must have no effect.
    for _ in range(2):
        resend(["--since", since(timedelta(hours=1))])
    wait_until_sent(own_shop, Orders, Users)
    own_shop.run(Notifications)

    wait_for(lambda: (len(smtp.messages(to=early["email"])), len(smtp.messages(to=late["email"]))) == (4, 1))
    # All resent events have been handled.
    for kind in kinds:
        [method] = [method for subscriber, method in kind.subscribers if subscriber == "notifications"]
        queue = handler_queue(kind, "notifications", method, own_shop.config).name
        wait_for(lambda queue=queue: own_shop.broker.depth(queue) == 0)
    assert lost == 3
    assert not [name for name in own_shop.broker.queues() if name.startswith("delay.") and own_shop.broker.depth(name)]
    assert own_shop.sql("notifications", "SELECT status, count(*) FROM notifications GROUP BY 1") == [("sent", 5)]


def test_a_resent_cancel_releases_its_stock_once(own_shop, environment):
    own_shop.run(Orders)
    products = own_shop.run(Products)
    product = own_shop.rpc.products.create_product(**a_product(stock_quantity=10))
    orders = [place_order(own_shop.rpc, a_line(product, 3)) for _ in range(2)]
    own_shop.rpc.orders.update_status(order_id=orders[0]["id"], status="cancelled")
    wait_for(lambda: own_shop.rpc.products.get_product(product_id=product["id"])["stock_quantity"] == 7)
    products.stop()
    own_shop.rpc.orders.update_status(order_id=orders[1]["id"], status="cancelled")
    wait_until_sent(own_shop, Orders)
    lost = delete_queues(own_shop, "products", OrderStatusUpdated)

    resend(["--since", since(timedelta(hours=1)), "--service", "orders"])

    wait_until_sent(own_shop, Orders)
    own_shop.run(Products)
    wait_for(lambda: own_shop.rpc.products.get_product(product_id=product["id"])["stock_quantity"] == 10)
    assert lost == 1


@pytest.mark.parametrize("text", ["yesterday", "2026-11-30T10:00", ""])
def test_a_time_without_a_zone_is_refused_with_a_sentence(capsys, text):
    with pytest.raises(SystemExit):
        resend(["--since", text])

    assert "a time with its zone, like 2026-11-30T10:00Z" in capsys.readouterr().err


def test_without_a_database_address_it_reports_which_to_set(monkeypatch):
    monkeypatch.delenv("USERS_DB_URI", raising=False)

    with pytest.raises(SystemExit, match="USERS_DB_URI"):
        resend(["--since", "2026-11-30T10:00Z", "--service", "users"])
