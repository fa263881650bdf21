"""The registry of the kit's own metrics. Their names have no prefix here: `Metrics(prefix=…)` adds it on /metrics."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric

KIT = CollectorRegistry()


class PrefixedRegistry:
    """The metrics of a registry with `PREFIX_` before each name, for prometheus_client's `generate_latest`."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self.registry, self.prefix = registry, prefix

    def collect(self) -> Iterator[Metric]:
        for metric in self.registry.collect():
            prefixed = Metric(f"{self.prefix}_{metric.name}", metric.documentation, metric.type, metric.unit)
            prefixed.samples = [sample._replace(name=f"{self.prefix}_{sample.name}") for sample in metric.samples]
            yield prefixed
