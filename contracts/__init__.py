"""What the services put on the wire, a module for each owner: events, errors, requests and answers.

types.py has what the services share. The modules of two services never import each other.
"""

from importlib import import_module
from typing import Any


def all_events() -> list[Any]:
    """The event classes of all services."""
    from contracts.types import SERVICES

    modules = [import_module(f"contracts.{service}") for service in SERVICES]
    return [each for module in modules for each in vars(module).values() if _is_event(each)]


def _is_event(thing: Any) -> bool:
    """Not a class that others are made of: an event has a name."""
    return hasattr(thing, "subscribers") and hasattr(thing, "name")
