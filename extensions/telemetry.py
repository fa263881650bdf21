"""What the LOGGING section of a config.yaml of 0.1.0 names."""

from nameko_reliable.telemetry.logs import QuietExpectedErrors, formatter

__all__ = ["QuietExpectedErrors", "formatter"]
