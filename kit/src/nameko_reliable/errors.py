"""Errors that the kit itself answers a call with. The caller gets an instance of the same class."""

from nameko.exceptions import BadRequest, deserialize_to_instance, registry


def outcome_of(error: BaseException | None) -> str:
    """How a call ended: ok, refused, error, timeout or unavailable. error: the exception it raised, or None.

    An error class that is registered to cross the wire counts as `refused`, unless it has another `outcome`.
    """
    if error is None:
        return "ok"
    # Nameko raises BadRequest for a malformed call: no method has refused it.
    if isinstance(error, BadRequest) or not isinstance(error, tuple(registry.values())):
        return "error"
    outcome: str = getattr(error, "outcome", "refused")
    return outcome


@deserialize_to_instance
class RpcTimeout(Exception):
    """The call's deadline passed. The method may or may not have run."""

    outcome = "timeout"

    def __init__(self, service: str) -> None:
        super().__init__(service)
        self.service = service


@deserialize_to_instance
class ServiceUnavailable(Exception):
    """No replica of the service listens, the broker is unreachable, or the database gave up a statement."""

    outcome = "unavailable"

    def __init__(self, service: str) -> None:
        super().__init__(service)
        self.service = service


@deserialize_to_instance
class ServiceBusy(ServiceUnavailable):
    """The service has more calls of this kind than it can answer in time. The method did not run."""

    def __init__(self, service: str, retry_after_seconds: int | str) -> None:
        super().__init__(service)
        self.args = service, retry_after_seconds
        self.retry_after_seconds = int(retry_after_seconds)


@deserialize_to_instance
class NotReplayable(Exception):
    """The parked message has no queue to go back to: it names none, or one that no longer exists."""


@deserialize_to_instance
class ParkedMessageNotFound(Exception):
    """The message is not parked, or no longer."""

    def __init__(self, message_id: str) -> None:
        super().__init__(message_id)
        self.message_id = str(message_id)


@deserialize_to_instance
class TooManyParked(Exception):
    """The parked message was not found among the oldest ones. It may be among the others, which cannot be read."""

    def __init__(self, looked_at: int | str, total: int | str) -> None:
        super().__init__(looked_at, total)
        self.looked_at, self.total = int(looked_at), int(total)


@deserialize_to_instance
class ParkingLotBusy(Exception):
    """Other calls are reading the service's parking queue, one at a time. They finish within seconds."""

    outcome = "unavailable"

    def __init__(self, service: str) -> None:
        super().__init__(service)
        self.service = service


@deserialize_to_instance
class DatabaseUnavailable(ServiceUnavailable):
    """The service's database is unreachable, read-only or overloaded. A commit in progress may have succeeded."""
