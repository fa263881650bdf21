"""What a running service tells about itself."""

import requests
from prometheus_client.parser import text_string_to_metric_families


class Watched:
    """container: of a service with `Metrics`, in this process."""

    def __init__(self, container):
        self.service = container.service_name
        self._dependencies = {provider.attr_name: provider for provider in container.dependencies}
        self.port = self.dependency("metrics").port
        self._at_first = self._samples()

    def dependency(self, name):
        return self._dependencies[name]

    def get(self, path, **options):
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=10, **options)

    def value(self, name, **labels):
        """None when there is no such sample."""
        return self._samples().get((name, frozenset({"service": self.service, **labels}.items())))

    def count(self, name, **labels):
        """The sum of all samples that have these labels, less what it was: other tests have counted here, too."""
        labels = {"service": self.service, **labels}
        return _sum(self._samples(), name, labels) - _sum(self._at_first, name, labels)

    def _samples(self):
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
        }


def _sum(samples, name, labels):
    return sum(value for (other, others), value in samples.items() if other == name and others >= labels.items())
