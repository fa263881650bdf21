import inspect
import re

import pytest
from nameko.extensions import ENTRYPOINT_EXTENSIONS_ATTR

from contracts import every_event, subscribing_services
from contracts.notifications import NotificationCreated
from contracts.orders import OrderCreated
from contracts.products import ProductChanged
from nameko_reliable.events import EventHandler, PlainEvent
from nameko_reliable.messages import from_payload, to_payload
from nameko_reliable.outbox import Outbox
from services import every_service
from tests.factories import order_created, order_status_updated

SERVICES = every_service()
EVENTS = every_event()
HINTS = {ProductChanged, NotificationCreated}


def handlers_in_the_code():
    """(event, service, method) of every durable handler. event: its class, or a PlainEvent."""
    for service in SERVICES:
        for method_name, method in inspect.getmembers(service, inspect.isfunction):
            for entrypoint in getattr(method, ENTRYPOINT_EXTENSIONS_ATTR, ()):
                if isinstance(entrypoint, EventHandler):
                    yield entrypoint.event, service.name, method_name


def test_the_subscribers_of_events_are_the_existing_handlers():
    named = {
        (event, service, method)
        for event in EVENTS
        for service, method in (*event.subscribers, *event.retired_subscribers)
    }

    # A plain event has no class, so it has no list of handlers.
    handlers = {handler for handler in handlers_in_the_code() if not isinstance(handler[0], PlainEvent)}
    assert named == handlers
    assert named


def test_the_subscribing_services_have_handlers_and_parking_queues():
    with_parking = {service.name for service in SERVICES if hasattr(service, "parking")}

    assert {service for _, service, _ in handlers_in_the_code()} == set(subscribing_services()) == with_parking


def test_every_kept_event_is_sent_by_the_outbox_of_its_source():
    sent = {
        (event, service.name)
        for service in SERVICES
        for _, outbox in inspect.getmembers(service, lambda member: isinstance(member, Outbox))
        for event in outbox.events
    }

    assert sent == {(event, event.source) for event in set(EVENTS) - HINTS}


@pytest.mark.parametrize("event_class", EVENTS, ids=lambda event: event.name)
def test_an_event_class_is_named_after_its_event(event_class):
    assert "".join(word.capitalize() for word in re.split("[._]", event_class.name)) == event_class.__name__


@pytest.mark.parametrize("event", [order_created(), order_status_updated(order_created(), "shipped")])
def test_an_event_crosses_the_wire_unchanged(event):
    assert from_payload(type(event), to_payload(event)) == event


# notifications stores the payload, and may make a mail of it at any time.
def test_an_order_event_from_before_0_1_0_has_an_unproven_address():
    payload = to_payload(order_created(email_verified=True))
    del payload["email_verified"]

    assert from_payload(OrderCreated, payload).email_verified is False


def test_two_events_never_share_an_id():
    assert order_created().event_id != order_created().event_id
