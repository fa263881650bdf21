"""What a running service reports about itself."""

import requests
from prometheus_client.parser import text_string_to_metric_families


class Watched:
    """container: of a service with `Metrics`, in this process."""

    def __init__(self, container):
        self.service = container.service_name
        self._dependencies = {provider.attr_name: provider for provider in container.dependencies}
        self.port = self.dependency("metrics").port
        self._at_first = self._lines()

    def dependency(self, name):
        return self._dependencies[name]

    def get(self, path, **options):
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=10, **options)

    def value(self, name, **labels):
        """None when there is no such sample."""
        labels = {"service": self.service, **labels}
        return next((value for others, value in _samples(self._lines(), name) if others == labels), None)

    def count(self, name, **labels):
        """The sum of all samples that have these labels, less what it was: other tests have counted here, too."""
        labels = {"service": self.service, **labels}
        return _sum(self._lines(), name, labels) - _sum(self._at_first, name, labels)

    def _lines(self):
        return self.get("/metrics").text.splitlines(keepends=True)


def _samples(lines, name):
    """(labels, value) of each. What a process of tests has counted takes seconds to parse, so only these are."""
    ours = "".join(line for line in lines if line.startswith(name))
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(ours)
        for sample in family.samples
        if sample.name == name
    ]


def _sum(lines, name, labels):
    return sum(value for others, value in _samples(lines, name) if others.items() >= labels.items())
