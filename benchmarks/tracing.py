"""What traces cost."""

from itertools import repeat
from statistics import median

from benchmarks.load import request
from benchmarks.report import Report
from benchmarks.scenarios import CUSTOMERS, MANY, measure, place_orders
from benchmarks.shop import PARTS, running_shop, scenario
from tests.infrastructure.collector import Collector

RATIO = "0.1"
ROUNDS = 6


@scenario("tracing")
def tracing(shop, report):
    """Orders and cached reads, in this shop without traces and in a second one with, by turns.

    So other work on the machine hits both alike.
    """
    collector = Collector()
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_TRACES_SAMPLER_ARG": RATIO}
    report.title(f"Traces, of which {float(RATIO):.0%} are kept")
    try:
        with running_shop() as traced:
            traced.scale(settings)
            rounds = [
                (_round(shop, report, "without"), _round(traced, Report(traced, report.seconds), "with"))
                for _ in range(ROUNDS)
            ]
    finally:
        collector.stop()
    for what in rounds[0][0]:
        without, with_traces = (median(each[way][what] for each in rounds) for way in (0, 1))
        change = median(each[1][what] / each[0][what] - 1 for each in rounds)
        report.note(f"{what}: {without:.3f} ms without, {with_traces:.3f} ms with, round by round {change:+.1%}.")
    report.note(f"{len(collector.spans)} spans came.")


def _round(shop, report, way):
    """{what: CPU ms of the shop's own processes for each}. PostgreSQL and RabbitMQ are given the same to do."""
    products, tokens = shop.products(), shop.customers(CUSTOMERS)
    read = request("GET", f"/products/{products[0]['id']}")
    rows = {
        "an order": place_orders(shop, report, f"an order, {way}", MANY, products, tokens),
        "a cached read": measure(shop, report, f"a cached read, {way}", lambda: [repeat(read)] * MANY),
    }
    return {what: sum(row.cpu_ms[part] for part in PARTS) for what, row in rows.items()}
