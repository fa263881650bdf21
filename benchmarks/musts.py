"""The figures that the shop must reach. Each run prints them, and the nightly check fails by them.

CPU is that of all processes but the load generator and the mail server. It is given in multiples of the Flask floor of
the same run, since a machine's speed changes.

The floor opens a connection for each request. The multiples were written down for a floor of 0.5 to 0.9 ms, and that is
what Flask costs then. On kept connections, as all other rows have them, Flask costs half of that or less. So by its row
on kept connections no must is measured: it shows how far the shop is from a server that does nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.report import FLASK, PARTS

CONNECTIONS = (1, 8, 16, 32)


def order_row(lines, connections):
    """The name of a row of orders."""
    counts = ((lines, "line"), (connections, "connection"))
    return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)


@dataclass(frozen=True)
class Must:
    """value: of the Results of a run; it raises KeyError when the run did not measure it.

    must, aim: in the unit. higher_is_better: they are lower bounds.
    """

    work: str
    must: float
    aim: float
    unit: str
    value: Callable
    higher_is_better: bool = False

    def measured(self, results):
        """The value, or None if the run did not measure it."""
        try:
            return self.value(results)
        except (KeyError, ZeroDivisionError):
            return None

    def is_missed(self, value, factor=1):
        """Whether the value misses the must, by more than that factor."""
        return value * factor < self.must if self.higher_is_better else value > self.must * factor


def times_flask(key):
    return lambda results: results.cpu(key) / results.cpu(FLASK)


def _orders(connections):
    return f"orders: {order_row(2, connections)}"


def _burst_seconds(results):
    """Infinite when an order of the burst was refused."""
    refused = results.row("orders: burst of 500, 64 at once")["errors"]
    return float("inf") if refused else results.figure("orders: last mail after the last answer of the burst")


def _against_nameko(connections):
    return lambda results: (
        results.rate(_orders(connections)) / results.rate(f"plain_nameko: {order_row(2, connections)}")
    )


def _worst(name, parts):
    """The highest figure of several parts."""
    return lambda results: max(results.figure(f"{name} {part}") for part in parts)


MUSTS = (
    *(
        Must(f"POST /orders, {order_row(2, connections)}", must, aim, "× Flask", times_flask(_orders(connections)))
        for connections, must, aim in ((16, 32, 20), (32, 32, 20), (1, 60, 45))
    ),
    *(
        Must(
            f"orders a second against plain Nameko's, {connections} connections",
            1.5,
            2.5,
            "×",
            _against_nameko(connections),
            higher_is_better=True,
        )
        for connections in (16, 32)
    ),
    Must(
        "PostgreSQL's part of an order",
        8,
        5,
        "bare order transactions",
        lambda results: (
            results.cpu(_orders(16), "postgres") / results.cpu("floors: bare order transaction, 16 connections")
        ),
    ),
    Must("GET /orders (10 orders)", 10, 7, "× Flask", times_flask("lists: GET /orders (10 orders)")),
    Must("uncached product", 6, 4, "× Flask", times_flask("catalogue: a product, not cached")),
    Must("uncached page of 20", 9, 6, "× Flask", times_flask("catalogue: a page of 20, not cached")),
    Must(
        "page 500 of 10,000 products, uncached",
        2,
        1.3,
        "pages 1",
        lambda results: (
            results.cpu("big: page 500 of 10,000 products, not cached")
            / results.cpu("big: page 1 of 10,000 products, not cached")
        ),
    ),
    *(
        Must(
            name,
            2.6,
            2,
            "× bare WSGI",
            lambda results, key=key: results.cpu(key) / results.cpu("floors: bare WSGI callable"),
        )
        for name, key in (
            ("cached product", "catalogue: a product"),
            ("304", "catalogue: a product, unchanged (304)"),
        )
    ),
    Must(
        "order → push, idle, after the order's own answer (p50)",
        15,
        8,
        "ms",
        lambda results: results.row("push: order → push, after the order's answer")["p50_ms"],
    ),
    Must("burst of 500, 64 at once: all 201, last mail after the last answer", 3, 1, "s", _burst_seconds),
    Must("kit: echo", 1.4, 1.2, "ms", lambda results: results.cpu("kit: echo, the kit")),
    Must("kit: event with inbox", 3.4, 3, "ms", lambda results: results.cpu("kit: event with one row, the kit")),
    Must(
        "kit: one key through the outbox",
        1500,
        2500,
        "a second",
        lambda results: results.rate("kit: outbox, one key"),
        higher_is_better=True,
    ),
    Must(
        "idle memory, all Python processes (PSS)",
        380,
        300,
        "MB",
        lambda results: results.figure("idle: memory (PSS), all processes"),
    ),
    Must("idle CPU, everything", 4, 2, "% of a core", lambda results: results.figure("idle: CPU, everything")),
    Must("start to serving, the highest CPU of a process", 1.2, 0.9, "s", _worst("start: CPU until it serves,", PARTS)),
    Must("2,000 sockets, each", 70, 50, "kB", lambda results: results.figure("sockets: memory of a socket")),
    Must(
        "a push to all of 2,000 sockets",
        400,
        200,
        "ms",
        lambda results: results.figure("sockets: a push to all, until the last has it"),
    ),
)


def print_musts(results):
    """Print the measured ratios beside the musts and the aims."""
    values = [(must, must.measured(results)) for must in MUSTS]
    known = [(must, value) for must, value in values if value is not None]
    if not known:
        return
    print(f"\n{'What must be reached':66} {'now':>9} {'must':>9} {'aim':>9}")
    for must, value in known:
        missed = "  missed" if must.is_missed(value) else ""
        print(f"{must.work:66} {value:9.1f} {must.must:9g} {must.aim:9g}  {must.unit}{missed}")


def faults(results, factor):
    """A sentence for each must that the run misses by more than the factor."""
    for must in MUSTS:
        value = must.measured(results)
        if value is not None and must.is_missed(value, factor):
            yield f"{must.work}: {value:.1f} {must.unit}, and the must is {must.must:g}."
