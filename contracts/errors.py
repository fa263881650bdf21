"""Every refusal a service can answer with, as one tree.

    ShopError
    ├── InvalidInput            a value is missing, malformed or out of bounds
    ├── InvalidCredentials      unknown address, wrong password or disabled account
    ├── InvalidSession          the refresh token is unknown, spent or too old
    ├── InvalidToken            a mailed token is unknown, spent or too old
    ├── TooManyFailures         logins that failed, of this account or from this address
    ├── SignInRefused           what came back from the sign-in provider doesn't hold
    ├── AccountDisabled
    ├── NotAllowed              the caller may see the thing, but not do this to it
    ├── NotFound
    │   ├── UserNotFound
    │   ├── ProductNotFound
    │   ├── OrderNotFound
    │   ├── NotificationNotFound
    │   ├── SessionNotFound
    │   └── ParkedMessageNotFound
    ├── Conflict
    │   ├── Taken               an address, a name or a SKU is somebody else's
    │   │   └── SkuTaken
    │   ├── InsufficientStock
    │   ├── TooManyOpenOrders   with this order the account would have more than it may
    │   ├── PriceChanged
    │   ├── IllegalTransition
    │   ├── StaleVersion
    │   ├── RequestInFlight
    │   ├── KeyReused
    │   ├── NotFailed
    │   ├── ReservationReleased
    │   ├── LastAdmin           somebody must be left who can make others admins
    │   ├── UnprovenAddress     the sign-in provider doesn't vouch for the address
    │   └── MailNotNeeded       the account is gone, disabled, moved or verified already
    └── Unavailable
        ├── NotConfigured       no sign-in provider is set up
        ├── SignInProviderAway
        ├── ProductsUnavailable
        └── ProductsTimeout

They carry fields, not sentences: the edge words them. An error crosses the broker as its
class's path and its positional arguments, and scalars arrive as strings, so each class
converts its own. Whoever imports this module gets the classes back; anyone else (a bare
`nameko shell`) sees a `RemoteError` that names them.
"""

from decimal import Decimal
from typing import Any
from uuid import UUID

from nameko.exceptions import deserialize_to_instance


class ShopError(Exception):
    """Base of all of them; every subclass is rebuilt from the wire as itself."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        deserialize_to_instance(cls)


class InvalidInput(ShopError):
    """errors: {field: [sentence, …]}, nested as the input was."""

    def __init__(self, errors: dict[str, Any]) -> None:
        super().__init__(errors)
        self.errors = errors


class InvalidCredentials(ShopError):
    pass


class InvalidSession(ShopError):
    pass


class InvalidToken(ShopError):
    pass


class TooManyFailures(ShopError):
    """Logins are refused unchecked until the wait is over."""

    def __init__(self, retry_after_seconds: int | str) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = int(retry_after_seconds)


class SignInRefused(ShopError):
    """reason: a sentence about what doesn't hold, without any part of a token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AccountDisabled(ShopError):
    pass


class NotAllowed(ShopError):
    pass


class NotFound(ShopError):
    """No such thing, or none that the caller may know of."""


class UserNotFound(NotFound):
    """user: the id or the address that was asked for."""

    def __init__(self, user: int | str) -> None:
        super().__init__(user)
        self.user = str(user)


class ProductNotFound(NotFound):
    def __init__(self, product_id: int | str) -> None:
        super().__init__(product_id)
        self.product_id = int(product_id)


class OrderNotFound(NotFound):
    def __init__(self, order_id: int | str) -> None:
        super().__init__(order_id)
        self.order_id = int(order_id)


class NotificationNotFound(NotFound):
    def __init__(self, notification_id: int | str) -> None:
        super().__init__(notification_id)
        self.notification_id = int(notification_id)


class SessionNotFound(NotFound):
    def __init__(self, session_id: int | str) -> None:
        super().__init__(session_id)
        self.session_id = int(session_id)


class ParkedMessageNotFound(NotFound):
    def __init__(self, message_id: str) -> None:
        super().__init__(message_id)
        self.message_id = str(message_id)


class Conflict(ShopError):
    """The request is sound, but the state of things stands against it."""


class Taken(Conflict):
    """field: which unique value somebody else holds (`email`, `username`, `sku`)."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class SkuTaken(Taken):
    """product: the one that has the SKU, perhaps off the shelves: {id, name, is_active}. For admins alone."""

    def __init__(self, product_id: int | str, name: str, is_active: bool | str) -> None:
        super().__init__("sku")
        self.args = (product_id, name, is_active)
        self.product = {"id": int(product_id), "name": name, "is_active": str(is_active) == "True"}


class InsufficientStock(Conflict):
    """Fewer units remain than were asked for."""

    def __init__(self, product_id: int | str, requested: int | str, available: int | str) -> None:
        super().__init__(product_id, requested, available)
        self.product_id, self.requested, self.available = int(product_id), int(requested), int(available)


class TooManyOpenOrders(Conflict):
    """With this order the account would have more orders open, or more units in them, than it may.

    An order is open until it is shipped or cancelled. An account may have more once its address is proven.
    """

    def __init__(
        self,
        open_orders: int | str,
        open_units: int | str,
        requested_units: int | str,
        most_orders: int | str,
        most_units: int | str,
    ) -> None:
        super().__init__(open_orders, open_units, requested_units, most_orders, most_units)
        self.open_orders, self.open_units = int(open_orders), int(open_units)
        self.requested_units = int(requested_units)
        self.most_orders, self.most_units = int(most_orders), int(most_units)


class PriceChanged(Conflict):
    """The caller was shown another price than the one that holds."""

    def __init__(self, product_id: int | str, given: Decimal | str, current: Decimal | str) -> None:
        super().__init__(product_id, given, current)
        self.product_id, self.given, self.current = int(product_id), Decimal(given), Decimal(current)


class IllegalTransition(Conflict):
    def __init__(self, old_status: str, new_status: str) -> None:
        super().__init__(old_status, new_status)
        self.old_status, self.new_status = old_status, new_status


class StaleVersion(Conflict):
    """Somebody edited the thing since the caller read it."""

    def __init__(self, given: int | str, current: int | str) -> None:
        super().__init__(given, current)
        self.given, self.current = int(given), int(current)


class RequestInFlight(Conflict):
    """The first request with this idempotency key has not finished yet."""

    def __init__(self, retry_after_seconds: int | str) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = int(retry_after_seconds)


class KeyReused(Conflict):
    """The idempotency key belongs to a request with another body."""


class NotFailed(Conflict):
    """Only a notification that has failed or is uncertain can be tried again."""

    def __init__(self, notification_id: int | str, status: str) -> None:
        super().__init__(notification_id, status)
        self.notification_id, self.status = int(notification_id), status


class ReservationReleased(Conflict):
    """The reservation was given back, which is final: it can't be reserved again."""

    def __init__(self, reservation_id: UUID | str) -> None:
        super().__init__(reservation_id)
        self.reservation_id = str(reservation_id)


class LastAdmin(Conflict):
    pass


class UnprovenAddress(Conflict):
    pass


class MailNotNeeded(Conflict):
    pass


class Unavailable(ShopError):
    """A service that this one needs could not answer; nothing is left half done."""

    # In the metrics of calls.
    outcome = "unavailable"


class NotConfigured(Unavailable):
    outcome = "refused"


class SignInProviderAway(Unavailable):
    pass


class ProductsUnavailable(Unavailable):
    pass


class ProductsTimeout(Unavailable):
    outcome = "timeout"
