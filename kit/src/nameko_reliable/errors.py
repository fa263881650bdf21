"""What the kit itself may answer a call with. All cross the wire as themselves."""

from nameko.exceptions import BadRequest, deserialize_to_instance, registry


def outcome_of(error: BaseException | None) -> str:
    """How a call ended: ok, refused, error, timeout or unavailable. error: None, or what it raised.

    What is meant to cross the wire is an answer, `refused`, unless its class has another `outcome`.
    """
    if error is None:
        return "ok"
    # Nameko's own BadRequest says that the call was none.
    if isinstance(error, BadRequest) or not isinstance(error, tuple(registry.values())):
        return "error"
    outcome: str = getattr(error, "outcome", "refused")
    return outcome


@deserialize_to_instance
class RpcTimeout(Exception):
    """The call's deadline passed. Whether the call was carried out is not known."""

    outcome = "timeout"

    def __init__(self, service: str) -> None:
        super().__init__(service)
        self.service = service


@deserialize_to_instance
class ServiceUnavailable(Exception):
    """No replica of the service listens, its broker is out of reach, or its database gave up a statement."""

    outcome = "unavailable"

    def __init__(self, service: str) -> None:
        super().__init__(service)
        self.service = service


@deserialize_to_instance
class ServiceBusy(ServiceUnavailable):
    """The service has more of such calls than it can answer in time. Nothing was carried out."""

    def __init__(self, service: str, retry_after_seconds: int | str) -> None:
        super().__init__(service)
        self.args = service, retry_after_seconds
        self.retry_after_seconds = int(retry_after_seconds)


@deserialize_to_instance
class NotReplayable(Exception):
    """There is no queue to give the parked message back to: it names none, or one that is gone."""


@deserialize_to_instance
class TooManyParked(Exception):
    """The parked message may be there, but not among the oldest, and no others can be looked at."""

    def __init__(self, looked_at: int | str, total: int | str) -> None:
        super().__init__(looked_at, total)
        self.looked_at, self.total = int(looked_at), int(total)


@deserialize_to_instance
class ParkingLotBusy(Exception):
    """Others look into the service's parking queue, one after the other. They are done within seconds."""

    outcome = "unavailable"

    def __init__(self, service: str) -> None:
        super().__init__(service)
        self.service = service


@deserialize_to_instance
class DatabaseUnavailable(ServiceUnavailable):
    """The service's database is out of reach, read-only or overloaded. A commit under way may have happened."""
