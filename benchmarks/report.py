"""One line for each measurement: throughput, latencies, and CPU time of each process."""

from benchmarks.load import LoadResult, percentile
from contracts.types import SERVICES

REPORTED_PARTS = (*SERVICES, "gateway", "rabbitmq", "postgres")
COLUMNS = (
    f"{'':34} {'per s':>8} {'p50':>7} {'p95':>7} {'p99':>7} {'errors':>6}  "
    + " ".join(f"{name[:8]:>8}" for name in REPORTED_PARTS)
    + f" {'all':>8}  busiest"
)
HEAD = f"{'':43} {'ms until the answer':^23} {'':6}  {'CPU ms for each':^{9 * len(REPORTED_PARTS) + 8}}\n{COLUMNS}"


class Row:
    """busy: {part: share of a core during the load}. cpu_seconds: {part: CPU time, with that of follow-up work}."""

    def __init__(self, name, load, busy, cpu_seconds):
        self.name, self.load, self.busy = name, load, busy
        self.cpu_ms = {part: seconds * 1000 / max(1, load.count) for part, seconds in cpu_seconds.items()}

    def __str__(self):
        load = self.load
        timed = [percentile(load.latencies_ms, percent) for percent in (50, 95, 99)] if any(load.latencies_ms) else []
        times = " ".join(f"{value:7.1f}" for value in timed) or f"{'-':>7} {'-':>7} {'-':>7}"
        paid = [self.cpu_ms[part] for part in REPORTED_PARTS]
        cpu = " ".join(f"{value:8.3f}" for value in [*paid, sum(paid)])
        busiest = sorted(self.busy, key=self.busy.get, reverse=True)[:2]
        return (
            f"{self.name:34} {load.count / load.seconds:8.1f} {times} {sum(load.errors.values()):6}  {cpu}  "
            + ", ".join(f"{part} {self.busy[part]:.0%}" for part in busiest)
            + (f"  errors: {dict(load.errors)}" if load.errors else "")
        )


class Report:
    def __init__(self, shop, seconds):
        self.shop, self.seconds = shop, seconds

    def title(self, text):
        print(f"\n{text}\n{HEAD}", flush=True)

    def note(self, text):
        print(f"  {text}", flush=True)

    def measure(self, name, run, settle=False):
        """Add a line for `run()`, which returns a LoadResult. settle: wait for the follow-up work and count it too."""
        before = self.shop.cpu_seconds()
        load = run()
        during = self.shop.cpu_seconds()
        if settle:
            self.shop.wait_until_settled()
        after = self.shop.cpu_seconds() if settle else during
        row = Row(
            name,
            load,
            busy={part: (during[part] - before[part]) / load.seconds for part in before},
            cpu_seconds={part: after[part] - before[part] for part in before},
        )
        print(row, flush=True)
        return row

    def count(self, name, count, run):
        """The same for work without requests: `run()` does `count` units of it and returns its seconds."""

        def counted():
            load = LoadResult()
            load.seconds, load.latencies_ms = run(), [0] * count
            return load

        return self.measure(name, counted)
