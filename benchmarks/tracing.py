"""The cost of tracing."""

import json
import re
import signal
import sys
from itertools import repeat
from statistics import median, quantiles

from benchmarks import load
from benchmarks.load import BenchmarkFailed, request
from benchmarks.orders import ordering
from benchmarks.reads import CLIENTS
from benchmarks.report import PARTS
from benchmarks.shop import CUSTOMERS, scenario
from nameko_reliable.testing.collector import Collector
from nameko_reliable.testing.waiting import wait_for

RATIOS = ("0", "0.1", "1")
# For each second of a row of other scenarios.
WATCH_SECONDS = 8
PAIRS_OF_ORDERS = 6
ORDERS_TURN_SECONDS = 1


@scenario("tracing")
def tracing(shop, report):
    """Cached reads and orders, in short turns with and without traces, in the same processes.

    A machine's speed changes within seconds, and two runs of a shop differ by a tenth. So each turn is compared with
    its neighbour. A turn has few orders, so only the cost of keeping all their traces is visible.
    """
    collector = Collector()
    # Parsing the spans would take time from the clients.
    collector.take = collector.bodies.append
    print("\nTraces, CPU of the shop's own processes", flush=True)
    try:
        for ratio in RATIOS:
            settings = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
                "OTEL_TRACES_SAMPLER_ARG": ratio,
                # Spans are exported when a batch is full, so in a turn that made some, and not by a timer.
                "OTEL_BSP_SCHEDULE_DELAY": "60000",
            }
            shop.scale(settings, nameko=[sys.executable, "-m", "benchmarks.switched"])
            reads = _pairs_of_reads(shop, WATCH_SECONDS * report.seconds)
            _note_pairs(report, f"a cached read, {float(ratio):.0%} kept", reads)
        # The shop still runs with the last ratio.
        _note_pairs(report, "an order, 100% kept", _pairs_of_orders(shop, PAIRS_OF_ORDERS * report.seconds))
        shop.scale()
        if not collector.bodies:
            raise BenchmarkFailed("No span was exported.")
    finally:
        collector.stop()


def _note_pairs(report, name, pairs):
    """pairs: of (µs without traces, µs with traces)."""
    without = median(pair[0] for pair in pairs)
    first, middle, last = quantiles(pair[1] - pair[0] for pair in pairs)
    report.note(
        f"{name}: {without:.0f} µs without traces, {middle:+.1f} with, {middle / without:+.1%} "
        f"(median of {len(pairs)} pairs, half of them from {first:+.1f} to {last:+.1f})."
    )


def _load(shop, clients, seconds, expected):
    done = load.http(shop.port, clients, seconds, (expected,))
    if done.errors:
        raise BenchmarkFailed(f"Some answers were not {expected}: {dict(done.errors)}")
    return done


def _pairs_of_reads(shop, seconds):
    reads = [repeat(request("GET", f"/products/{shop.products()[0]['id']}"))] * CLIENTS
    _load(shop, reads, 1, 200)
    [gateway] = shop.replicas["gateway"]
    gateway.send(signal.SIGUSR2)
    _load(shop, reads, seconds, 200)
    gateway.send(signal.SIGUSR2)
    return json.loads(wait_for(lambda: re.search("^pairs: (.+)\n", gateway.output(), re.MULTILINE))[1])


def _pairs_of_orders(shop, count):
    products, tokens = shop.products(), shop.customers(CUSTOMERS)

    def turn():
        shop.wait_until_settled()
        before = shop.cpu_seconds()
        done = _load(shop, ordering(CLIENTS, products, tokens), ORDERS_TURN_SECONDS, 201)
        shop.wait_until_settled()
        after = shop.cpu_seconds()
        return sum(after[part] - before[part] for part in PARTS) * 1e6 / done.count

    def switched_turn():
        shop.signal(signal.SIGUSR1)
        return turn()

    turn()
    # on, off, off, on, …: each pair starts with the state in which the last one ended.
    pairs = [[turn(), switched_turn()] for _ in range(count)]
    return [pair if number % 2 else pair[::-1] for number, pair in enumerate(pairs)]
