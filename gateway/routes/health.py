from datetime import UTC, datetime
from time import perf_counter

import eventlet
from flask import g

from extensions.payloads import timestamp
from gateway.api import Blueprint
from gateway.auth import public
from gateway.errors import NotReady
from gateway.schemas import HealthView, ProbeView

blp = Blueprint("health", __name__, description="How the shop is", asks_services=False)

SERVICES = ("users", "products", "orders", "notifications")
HEALTH_SECONDS = 2
READY_SECONDS = 1


@blp.route("/health")
@public
@blp.response(200, HealthView)
def health():
    """What answers and how fast; 200 whatever is down."""
    services = _ask_all(HEALTH_SECONDS)
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
def livez():
    """Whether this process serves requests."""
    return {"status": "up"}


@blp.route("/readyz")
@public
@blp.response(200, ProbeView)
@blp.problems(NotReady)
def readyz():
    """Whether requests make sense here: the broker is in reach and one service at least answers."""
    if all(service["status"] == "down" for service in _ask_all(READY_SECONDS).values()):
        raise NotReady
    return {"status": "up"}


def _ask_all(seconds):
    shop = g.shop.within(seconds=seconds)
    asked = {service: eventlet.spawn(_ask, shop, service) for service in SERVICES}
    return {service: greenlet.wait() for service, greenlet in asked.items()}


def _ask(shop, service):
    started_at = perf_counter()
    try:
        getattr(shop, service).health()
        status = "up"
    except Exception:  # Whatever it is, the answer to the question is no.
        status = "down"
    return {"status": status, "response_time_ms": round((perf_counter() - started_at) * 1000, 1)}
