"""What the kit itself may answer a call with. All cross the wire as themselves."""

from nameko.exceptions import deserialize_to_instance


@deserialize_to_instance
class RpcTimeout(Exception):
    """The call's deadline passed. Whether the call was carried out is not known."""

    def __init__(self, service):
        super().__init__(service)
        self.service = service


@deserialize_to_instance
class ServiceUnavailable(Exception):
    """No replica of the service listens, or its broker or database is out of reach."""

    def __init__(self, service):
        super().__init__(service)
        self.service = service


@deserialize_to_instance
class NotReplayable(Exception):
    """There is no queue to give the parked message back to: it names none, or one that is gone."""


@deserialize_to_instance
class DatabaseUnavailable(ServiceUnavailable):
    """The service's database is away or overloaded. A commit under way may have happened."""
