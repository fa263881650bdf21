import logging
from contextvars import copy_context
from datetime import UTC, datetime
from time import monotonic, perf_counter
from typing import Any

import eventlet
from flask import current_app, g

from contracts.types import SERVICES, JsonObject
from gateway.api import Blueprint
from gateway.auth import public
from gateway.errors import NotReady
from gateway.schemas import HealthView, ProbeView
from nameko_reliable.messages import timestamp
from nameko_reliable.rpc import Cluster

logger = logging.getLogger(__name__)

blp = Blueprint("health", __name__, description="Health checks", calls_services=False)

HEALTH_SECONDS = 2
READY_SECONDS = 1
SHARED_SECONDS = 0.5


@blp.route("/health")
@public
@blp.response(200, HealthView)
def health() -> JsonObject:
    """The status and response time of each service. The HTTP status is always 200."""
    services = current_app.extensions["health_checks"].check_all(g.shop, HEALTH_SECONDS)
    up = [service["status"] == "up" for service in services.values()]
    return {
        "status": "healthy" if all(up) else "degraded" if any(up) else "unhealthy",
        "timestamp": timestamp(datetime.now(UTC)),
        "gateway": {"status": "up"},
        "services": services,
        "warnings": [],
    }


@blp.route("/livez")
@public
@blp.response(200, ProbeView)
def livez() -> JsonObject:
    """Whether this process serves requests."""
    return {"status": "up"}


@blp.route("/readyz")
@public
@blp.response(200, ProbeView)
@blp.problems(NotReady)
def readyz() -> JsonObject:
    """Whether to send requests here: the broker is reachable and at least one service answers."""
    services = current_app.extensions["health_checks"].check_all(g.shop, READY_SECONDS)
    if all(service["status"] == "down" for service in services.values()):
        raise NotReady
    return {"status": "up"}


class HealthChecks:
    """Requests within SHARED_SECONDS of each other share one round of checks, running or finished."""

    def __init__(self) -> None:
        self._latest: dict[float, tuple[float, Any]] = {}  # timeout in seconds: (started_at, greenlet)

    def check_all(self, shop: Cluster, seconds: float) -> dict[str, JsonObject]:
        started_at, checks = self._latest.get(seconds, (float("-inf"), None))
        if monotonic() - started_at > SHARED_SECONDS:
            checks = eventlet.spawn(copy_context().run, _check_all, shop.within(seconds=seconds))
            self._latest[seconds] = monotonic(), checks
        return checks.wait()


def _check_all(shop: Cluster) -> dict[str, JsonObject]:
    checks = {service: eventlet.spawn(copy_context().run, _check, shop, service) for service in SERVICES}
    return {service: greenlet.wait() for service, greenlet in checks.items()}


def _check(shop: Cluster, service: str) -> JsonObject:
    started_at = perf_counter()
    try:
        getattr(shop, service).health()
        status = "up"
    except Exception as error:
        # For every error the answer is "down". The log has the reason.
        logger.warning("%s is down: %r", service, error)
        status = "down"
    return {"status": status, "response_time_ms": round((perf_counter() - started_at) * 1000, 1)}
