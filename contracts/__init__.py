"""The wire format of the services: events, errors, requests and answers, one module for each owner.

Shared types are in types.py. The modules of two services never import each other.
"""

from importlib import import_module
from typing import Any


def every_event() -> list[Any]:
    """The event classes of all services."""
    from contracts.types import SERVICES

    modules = [import_module(f"contracts.{service}") for service in SERVICES]
    return [each for module in modules for each in vars(module).values() if _is_event(each)]


def subscribing_services() -> tuple[str, ...]:
    """The services that events name as subscribers: each has a parking queue, and the RPCs to look into it."""
    from contracts.types import SERVICES

    named = {service for event in every_event() for service, _ in event.subscribers}
    return tuple(service for service in SERVICES if service in named)


def _is_event(thing: Any) -> bool:
    """Whether it is an event class that can be emitted: base classes have no name."""
    return hasattr(thing, "subscribers") and hasattr(thing, "name")
