"""All processes of one release are killed in the middle of their work. The other release finishes it."""

from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import uuid4

import eventlet
import pytest
import requests

from nameko_reliable.messages import to_payload
from nameko_reliable.testing.waiting import wait_for
from tests.factories import an_account, order_created

from .mixed_shop import FIRST_INVENTED_ORDER, NEW, OLD, replicas
from .people import Person, mailed_token, open_account

pytestmark = pytest.mark.server

CONFIRM_ORDER = "evt-orders-order.created--notifications.confirm_order"


@pytest.fixture(scope="module", params=[(OLD, NEW), (NEW, OLD)], ids=["new after old", "old after new"])
def unfinished(request, shop, customer, admin, product):
    """The unfinished work that the killed release left since `begun_at`. release: the running one, at `gateway`."""
    before, after = (shop.releases[name] for name in request.param)
    gateway, unfinished = before.gateway, SimpleNamespace(key=uuid4().hex, release=after, gateway=after.gateway)
    shop.releases[NEW].operate("migrate")
    shop.change_to(replicas(request.param[0]))
    customer.refresh(gateway)

    unfinished.begun_at = datetime.now(UTC)
    unfinished.person = Person(an_account())
    unfinished.person.post(gateway, "/users/register", unfinished.person.account)
    unfinished.token = mailed_token(shop.smtp, unfinished.person, "user.registered")
    # So that no mail is in progress: its status would be uncertain after the server stops.
    shop.wait_until_settled()

    unfinished.parked, unfinished.delayed = invented_event(), invented_event()
    fail_to_store(shop, unfinished.parked, unfinished.delayed)
    shop.broker.publish(to_payload(unfinished.parked), queue=CONFIRM_ORDER, headers={"x-attempt": 5})
    wait_for(lambda: shop.broker.depth("parked.notifications") == 1)

    shop.smtp.stop()
    unfinished.unmailed = customer.order(gateway, product).json()
    tried = "SELECT tries FROM notifications WHERE order_id = %s AND status = 'pending' AND error_message IS NOT NULL"
    wait_for(lambda: shop.sql("notifications", tried, unfinished.unmailed["id"]))

    with (
        shop.transaction("orders", "SELECT pg_advisory_xact_lock(hashtext('outbox'))"),
        shop.transaction("orders") as cursor,
    ):
        unfinished.unsent = customer.order(gateway, product).json()
        cursor.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        eventlet.spawn(order_without_answer, customer, gateway, product, unfinished.key)
        shop.wait_until_locked("orders")
        shop.broker.publish(to_payload(unfinished.delayed), queue=CONFIRM_ORDER, headers={"x-attempt": 1})
        wait_for(lambda: shop.broker.depth("delay.5s") == 1)
        shop.kill_all()
        # PostgreSQL would carry out what waits for the lock, though its client is gone.
        shop.sql("orders", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        shop.wait_until_locked("orders", waiters=0)
    assert shop.sql("orders", "SELECT payload->'order_id' FROM outbox") == [(unfinished.unsent["id"],)]

    shop.smtp.start()
    shop.sql("notifications", "ALTER TABLE notifications DROP CONSTRAINT not_yet")
    # Ends the pauses between tries, and keeps the lease of 10 s from ending before its test.
    shop.sql("notifications", "UPDATE notifications SET next_try_at = now() WHERE status = 'pending'")
    shop.sql("orders", "UPDATE attempts SET leased_until = now() + interval '1 hour' WHERE state = 'open'")
    shop.change_to(replicas(request.param[1]))
    for person in (customer, admin):
        person.refresh(unfinished.gateway)
    return unfinished


def invented_event():
    """An event of an order that does not exist."""
    number = FIRST_INVENTED_ORDER + uuid4().int % 10**9
    return order_created(order_id=number, user_id=number, user_email=f"{uuid4().hex}@forage.example")


def fail_to_store(shop, *events):
    addresses = ", ".join(f"'{event.user_email}'" for event in events)
    check = f"CHECK (recipient_email NOT IN ({addresses})) NOT VALID"
    shop.sql("notifications", f"ALTER TABLE notifications ADD CONSTRAINT not_yet {check}")


def order_without_answer(customer, gateway, product, key):
    with suppress(requests.RequestException):
        customer.order(gateway, product, Idempotency_Key=key)


def test_an_event_left_in_the_outbox_is_published(shop, unfinished, customer):
    shop.wait_until_mailed(customer.email, unfinished.unsent["id"])


def test_an_event_left_waiting_for_its_next_attempt_is_handled(shop, unfinished):
    shop.wait_until_mailed(unfinished.delayed.user_email, unfinished.delayed.order_id)


def test_a_mail_left_waiting_for_its_server_is_sent(shop, unfinished, customer):
    shop.wait_until_mailed(customer.email, unfinished.unmailed["id"])


def test_a_parked_message_is_listed_and_replayed(shop, unfinished, admin):
    [parked] = admin.get(unfinished.gateway, "/admin/parked").json()["messages"]

    replayed = admin.post(unfinished.gateway, f"/admin/parked/{parked['service']}/{parked['id']}/replay")

    assert (parked["queue"], parked["attempts"], replayed.status_code) == (CONFIRM_ORDER, 6, 204)
    shop.wait_until_mailed(unfinished.parked.user_email, unfinished.parked.order_id)


def test_repeating_an_order_places_it_after_its_process_was_killed(shop, unfinished, customer, product):
    in_flight = customer.order(unfinished.gateway, product, Idempotency_Key=unfinished.key)
    shop.sql("orders", "UPDATE attempts SET leased_until = now() WHERE key = %s", unfinished.key)

    placed = customer.order(unfinished.gateway, product, Idempotency_Key=unfinished.key)

    assert (in_flight.status_code, in_flight.json()["type"]) == (409, "request-in-flight")
    assert placed.status_code == 201, placed.text
    assert customer.order(unfinished.gateway, product, Idempotency_Key=unfinished.key).json() == placed.json()


def test_a_link_mailed_before_the_upgrade_works(unfinished):
    verified = unfinished.person.post(unfinished.gateway, "/users/verify-email", {"token": unfinished.token})

    assert verified.status_code == 204


def test_resent_events_have_no_second_effect(shop, unfinished, customer, product):
    unfinished.release.operate("resend", "--since", unfinished.begun_at.isoformat())

    # Events of a new account and a new order, which arrive after the resent ones.
    open_account(shop.smtp, unfinished.gateway)
    shop.wait_until_mailed(customer.email, customer.order(unfinished.gateway, product).json()["id"])
    shop.wait_until_settled()
