"""A module for each service, and those that belong to one by their names: orders.py, orders_models.py."""


def every_service() -> list[type]:
    """The classes of all services."""
    from nameko.cli.run import import_service

    from contracts.types import SERVICES

    return [each for service in SERVICES for each in import_service(f"services.{service}")]
