"""The kit's own metrics. Their names have no prefix: `Metrics(prefix=…)` puts one before them where it shows them."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric

KIT = CollectorRegistry()


class PrefixedRegistry:
    """A registry's metrics, `PREFIX_` before each name; prometheus_client takes it for a registry."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self.registry, self.prefix = registry, prefix

    def collect(self) -> Iterator[Metric]:
        for metric in self.registry.collect():
            prefixed = Metric(f"{self.prefix}_{metric.name}", metric.documentation, metric.type, metric.unit)
            prefixed.samples = [sample._replace(name=f"{self.prefix}_{sample.name}") for sample in metric.samples]
            yield prefixed
