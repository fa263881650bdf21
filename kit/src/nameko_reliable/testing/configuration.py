"""The kit's settings, for tests."""


def configuration(broker, database_uris):
    """What a service's config.yaml would say. A project's own settings go over it."""
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
