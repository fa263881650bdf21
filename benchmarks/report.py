"""What a run measured: a line for each row, at once, and all of it for the JSON file.

A row is some work under load: throughput, latencies, and CPU time of each process. A figure is a single number.
"""

import time

from benchmarks.load import LoadResult, http, percentile
from contracts.types import SERVICES

# The shop's own processes, which Nameko runs.
PARTS = (*SERVICES, "gateway")
# Those whose CPU a request costs. The load generator and the mail server are not among them.
SHOP_PARTS = (*PARTS, "rabbitmq", "postgres")
WARM_UP_SECONDS = 1
PERCENTS = (50, 95, 99)
# CPU of all other rows is also given in multiples of this row.
FLASK = "floors: Flask, a connection for each request"


class Row:
    """busy: {part: share of a core during the load}. cpu_seconds: {part: CPU time, with that of follow-up work}.

    parts: those that are printed and summed up. flask_ms: CPU of a request of the Flask floor, None if not measured.
    """

    def __init__(self, name, load, busy, cpu_seconds, parts=SHOP_PARTS, flask_ms=None):
        self.name, self.load, self.busy, self.flask_ms = name, load, busy, flask_ms
        self.cpu_ms = {part: cpu_seconds[part] * 1000 / max(1, load.count) for part in parts}

    @property
    def all_cpu_ms(self):
        return sum(self.cpu_ms.values())

    @property
    def per_second(self):
        return self.load.count / self.load.seconds

    @property
    def times_ms(self):
        """{percent: ms}, empty for work without requests."""
        latencies = self.load.latencies_ms
        return {percent: percentile(latencies, percent) for percent in PERCENTS} if any(latencies) else {}

    def as_json(self):
        return {
            "per_second": self.per_second,
            **{f"p{percent}_ms": value for percent, value in self.times_ms.items()},
            "count": self.load.count,
            "errors": {str(answer): count for answer, count in self.load.errors.items()},
            "cpu_ms": {**self.cpu_ms, "all": self.all_cpu_ms},
            "busy": self.busy,
        }

    def __str__(self):
        load = self.load
        times = " ".join(f"{value:7.1f}" for value in self.times_ms.values()) or f"{'-':>7} {'-':>7} {'-':>7}"
        cpu = " ".join(f"{value:8.3f}" for value in [*self.cpu_ms.values(), self.all_cpu_ms])
        multiple = f"{self.all_cpu_ms / self.flask_ms:8.1f}" if self.flask_ms else f"{'-':>8}"
        busiest = sorted(self.busy, key=self.busy.get, reverse=True)[:2]
        return (
            f"{self.name:38} {self.per_second:8.1f} {times} {sum(load.errors.values()):6}  {cpu} {multiple}  "
            + ", ".join(f"{part} {self.busy[part]:.0%}" for part in busiest)
            + (f"  errors: {dict(load.errors)}" if load.errors else "")
        )


def head(parts):
    names = " ".join(f"{name[:8]:>8}" for name in parts)
    columns = f"{'':38} {'per s':>8} {'p50':>7} {'p95':>7} {'p99':>7} {'errors':>6}  {names} {'all':>8} {'× Flask':>8}"
    return f"{'':47} {'ms until the answer':^23} {'':6}  {'CPU ms for each':^{9 * len(parts) + 8}}\n{columns}  busiest"


class Results:
    """rows and figures of a run, by "SCENARIO: NAME", as in the JSON file."""

    def __init__(self, rows=None, figures=None):
        self.rows, self.figures = rows or {}, figures or {}

    def row(self, key):
        return self.rows[key]

    def cpu(self, key, part="all"):
        """CPU ms of each."""
        return self.rows[key]["cpu_ms"][part]

    def rate(self, key):
        return self.rows[key]["per_second"]

    def figure(self, key):
        return self.figures[key]["value"]


class Report:
    """Of one scenario. seconds: of each row. parts: those that its rows show."""

    def __init__(self, shop, scenario, seconds, results):
        self.shop, self.scenario, self.seconds, self.results = shop, scenario, seconds, results
        self.parts = SHOP_PARTS

    def title(self, text, parts=SHOP_PARTS):
        self.parts = parts
        print(f"\n{text}\n{head(parts)}", flush=True)

    def note(self, text):
        print(f"  {text}", flush=True)

    def figure(self, name, value, unit):
        """Add a number that is no row. value: None where it cannot be measured."""
        if value is not None:
            self.results.figures[f"{self.scenario}: {name}"] = {"value": value, "unit": unit}
        self.note(f"{name}: {'not measurable here' if value is None else f'{value:.2f} {unit}'}")

    def measure(self, name, run, settle=None):
        """Add a row for `run()`, which returns a LoadResult.

        settle: waits for the follow-up work. Its CPU counts too, and the rate is of the work with all that follows.
        """
        before, started_at = self.shop.cpu_seconds(), time.perf_counter()
        load = run()
        during, load_seconds = self.shop.cpu_seconds(), load.seconds
        after = during
        if settle:
            settle()
            load.seconds = time.perf_counter() - started_at
            after = self.shop.cpu_seconds()
        flask = self.results.rows.get(FLASK)
        row = Row(
            name,
            load,
            busy={part: (during[part] - before[part]) / load_seconds for part in before},
            cpu_seconds={"peer": load.own_cpu_seconds} | {part: after[part] - before[part] for part in before},
            parts=self.parts,
            flask_ms=flask and flask["cpu_ms"]["all"],
        )
        self.results.rows[f"{self.scenario}: {name}"] = row.as_json()
        print(row, flush=True)
        return row

    def requests(self, name, port, clients, expected=(200,), settle=None, keep_alive=True):
        """Add a row for requests, after a warm-up. clients: makes a new list of clients for each."""

        def run(seconds):
            return http(port, clients(), seconds, expected, keep_alive)

        run(WARM_UP_SECONDS)
        if settle:
            settle()
        return self.measure(name, lambda: run(self.seconds), settle)

    def count(self, name, count, run):
        """The same for work without requests: `run()` does `count` units of it and returns its seconds."""

        def counted():
            load = LoadResult()
            load.seconds, load.latencies_ms = run(), [0] * count
            return load

        return self.measure(name, counted)
