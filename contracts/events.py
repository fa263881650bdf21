"""The events of the shop: one frozen dataclass each, which names its source and its subscribers.

A kept event goes out through its service's outbox. `subscribers` names its durable handlers
as (service, method): the relay declares their queues and sends it to each, so the event waits
even for a service that has never run. `ProductChanged` and `NotificationCreated` are hints:
transient, to whoever listens at that moment.

On the wire an event is a JSON object of its fields: Decimal and UUID as strings, times as
ISO 8601 in UTC. `version` is raised when a field changes its meaning; a handler parks a
version that it doesn't know.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import ClassVar
from uuid import UUID, uuid4, uuid5

# Why an order was cancelled: it was pending for too long.
NOT_CONFIRMED = "not-confirmed"

# The services that handle kept events: each has a parking queue, and the RPCs to look into it.
SUBSCRIBERS = ("products", "notifications")
_EVENT_IDS = UUID("6f2c3c0e-6d0b-4d6c-9f0a-7d1f6b0a2c51")


def event_id_of(*facts: object) -> UUID:
    """The same id each time an event is made of these facts, so handlers know one that `scripts.resend` makes again."""
    return uuid5(_EVENT_IDS, " ".join(map(str, facts)))


@dataclass(frozen=True, kw_only=True)
class Event:
    source: ClassVar[str]
    name: ClassVar[str]
    subscribers: ClassVar[tuple[tuple[str, str], ...]] = ()

    event_id: UUID = field(default_factory=uuid4)
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class OrderLine:
    product_id: int
    product_name: str
    product_price: Decimal
    quantity: int
    subtotal: Decimal


@dataclass(frozen=True, kw_only=True)
class OrderEvent(Event):
    """sequence: 1 for an order's first event, one more for each that follows.

    email_verified: whether the customer's address was proven, as far as the order knows. Absent in the release before.
    """

    source = "orders"

    order_id: int
    sequence: int
    user_id: int
    user_email: str
    email_verified: bool = False
    status: str
    items: tuple[OrderLine, ...]
    total_amount: Decimal
    reservation_id: UUID


@dataclass(frozen=True, kw_only=True)
class OrderCreated(OrderEvent):
    name = "order.created"
    subscribers = (("products", "commit_reservation"), ("notifications", "confirm_order"))


@dataclass(frozen=True, kw_only=True)
class OrderStatusUpdated(OrderEvent):
    """reason: why the shop took the step by itself, None for a step that was asked for."""

    name = "order.status.updated"
    subscribers = (("products", "return_cancelled_stock"), ("notifications", "tell_status"))

    old_status: str
    new_status: str
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class OrderAbandoned(Event):
    """No order will come of this reservation."""

    source = "orders"
    name = "order.abandoned"
    subscribers = (("products", "release_abandoned_stock"),)

    reservation_id: UUID


@dataclass(frozen=True, kw_only=True)
class UserEvent(Event):
    """Without the token that its mail carries: whoever sends the mail asks users for one."""

    source = "users"

    user_id: int
    email: str


@dataclass(frozen=True, kw_only=True)
class UserRegistered(UserEvent):
    name = "user.registered"
    subscribers = (("notifications", "send_verification"),)


@dataclass(frozen=True, kw_only=True)
class UserVerificationRequested(UserEvent):
    """The first mail did not arrive, or came too late."""

    name = "user.verification_requested"
    subscribers = (("notifications", "send_verification_again"),)


@dataclass(frozen=True, kw_only=True)
class UserPasswordResetRequested(UserEvent):
    name = "user.password_reset_requested"
    subscribers = (("notifications", "send_password_reset"),)


@dataclass(frozen=True, kw_only=True)
class ProductChanged(Event):
    """revision: one more with each change of the product; a lower one than the last seen is stale."""

    source = "products"
    name = "product.changed"

    id: int
    price: Decimal
    stock_quantity: int
    is_active: bool
    revision: int


@dataclass(frozen=True, kw_only=True)
class NotificationCreated(Event):
    """sequence: of the order's event. None is what the release before sends."""

    source = "notifications"
    name = "notification.created"

    id: int
    user_id: int
    event_type: str
    subject: str
    message: str
    order_id: int | None
    sequence: int | None = None
