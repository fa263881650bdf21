"""The kit's settings, for tests."""

from collections.abc import Mapping
from typing import Any

from nameko_reliable.testing.brokers import Broker


def configuration(broker: Broker, database_uris: Mapping[str, str]) -> dict[str, Any]:
    """The settings that a service's config.yaml would have. A project adds its own, or replaces some."""
    return {
        "ENVIRONMENT": "development",
        "AMQP_URI": broker.uri,
        "rpc_exchange": "nameko-rpc",
        "max_workers": 10,
        "DB_URIS": database_uris,
        "METRICS_HOST": "127.0.0.1",
        "METRICS_PORT": 0,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "",
        "OTEL_TRACES_SAMPLER_ARG": 0.1,
    }
