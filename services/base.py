"""What the services have alike."""

from contracts.types import ParkedQuery, ParkedSelection, load
from nameko_reliable.parking import ParkingLot
from nameko_reliable.rpc import ClusterClient
from nameko_reliable.telemetry.logs import LogContext
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.telemetry.tracing import WorkerSpans


class Service:
    """Dependencies alone: a class with entrypoints would be started from every module that imports it."""

    cluster = ClusterClient()
    log_context = LogContext()
    tracing = WorkerSpans()
    metrics = Metrics(prefix="forage")


class CheckedParkingLot(ParkingLot):
    """Raises InvalidInput where an argument is out of its bounds."""

    def list(self, limit):
        return super().list(**load(ParkedQuery(), {"limit": limit}))

    def replay_all(self, queue=None, reason=None, left=None):
        return super().replay_all(**load(ParkedSelection(), {"queue": queue, "reason": reason, "left": left}))

    def discard_all(self, queue=None, reason=None, left=None):
        return super().discard_all(**load(ParkedSelection(), {"queue": queue, "reason": reason, "left": left}))
