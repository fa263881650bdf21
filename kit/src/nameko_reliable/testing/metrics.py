"""What a running service reports about itself."""

from collections.abc import Iterable, Mapping
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families


class Watched:
    """container: of a service in this process with `metrics = Metrics(…)`."""

    def __init__(self, container: Any) -> None:
        self.service: str = container.service_name
        self._dependencies = {provider.attr_name: provider for provider in container.dependencies}
        self.port: int = self.dependency("metrics").port
        self._at_first = self._lines()

    def dependency(self, name: str) -> Any:
        return self._dependencies[name]

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=10, **options)

    def value(self, name: str, **labels: str) -> float | None:
        """The value of a sample; None if there is no such sample."""
        labels = {"service": self.service, **labels}
        return next((value for others, value in _samples(self._lines(), name) if others == labels), None)

    def count(self, name: str, **labels: str) -> float:
        """By how much the sum of all samples with these labels has grown since this object was made.

        The counters are shared by all tests of the process.
        """
        labels = {"service": self.service, **labels}
        return _sum(self._lines(), name, labels) - _sum(self._at_first, name, labels)

    def _lines(self) -> list[str]:
        return self.get("/metrics").text.splitlines(keepends=True)


def _samples(lines: Iterable[str], name: str) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of each sample. Other lines are not parsed: in a process of tests all would take seconds."""
    wanted = "".join(line for line in lines if line.startswith(name))
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(wanted)
        for sample in family.samples
        if sample.name == name
    ]


def _sum(lines: Iterable[str], name: str, labels: Mapping[str, str]) -> float:
    return sum(value for others, value in _samples(lines, name) if others.items() >= labels.items())
