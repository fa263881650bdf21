"""What all services share: their dependencies, and checked RPCs for parked messages."""

from typing import Any

from contracts.types import ParkedQuery, ParkedSelection, load
from nameko_reliable.parking import ParkingLot
from nameko_reliable.rpc import ClusterClient
from nameko_reliable.telemetry.logs import LogContext
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.telemetry.tracing import WorkerSpans


class Service:
    """Dependencies only: Nameko would start a class with entrypoints from every module that imports it."""

    cluster = ClusterClient()
    log_context = LogContext()
    tracing = WorkerSpans()
    metrics = Metrics(prefix="forage")


class CheckedParkingLot(ParkingLot):
    """A ParkingLot that raises InvalidInput for an argument out of bounds."""

    def list(self, limit: int) -> Any:
        return super().list(**load(ParkedQuery(), {"limit": limit}))

    def replay_all(self, queue: str | None = None, reason: str | None = None, left: int | None = None) -> Any:
        return super().replay_all(**load(ParkedSelection(), {"queue": queue, "reason": reason, "left": left}))

    def discard_all(self, queue: str | None = None, reason: str | None = None, left: int | None = None) -> Any:
        return super().discard_all(**load(ParkedSelection(), {"queue": queue, "reason": reason, "left": left}))
