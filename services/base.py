"""What all services have alike."""

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
