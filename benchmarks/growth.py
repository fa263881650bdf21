"""How the costs grow: with replicas, lines of an order, open WebSockets, and orders in the tables.

Chosen by SCENARIOS=growth: to fill the tables takes minutes and some GB.
"""

from benchmarks.big import add_orders, add_products, back_office_rows
from benchmarks.live import push_to_all
from benchmarks.load import request
from benchmarks.orders import place_orders
from benchmarks.reads import all_send, authorization, list_rows
from benchmarks.report import PARTS
from benchmarks.shop import CUSTOMERS, scenario

CONNECTIONS = 16
REPLICAS = (1, 2, 4)
LINES = (1, 2, 5, 10, 20, 50, 100)
SOCKETS = (10, 100, 500, 2000)
ORDERS = (100, 1_000, 10_000, 100_000, 1_000_000)


class Series:
    """The same work at growing sizes.

    sizes: what they are the number of. is_linear: the work itself grows with them.
    """

    def __init__(self, report, sizes, is_linear=False):
        self._report, self._sizes, self._is_linear = report, sizes, is_linear
        self._rows = {}

    def title(self, size):
        self._report.title(f"{self._sizes.capitalize()}: {size:,}")

    def add(self, size, rows):
        """rows: {work: its Row}. The row is also kept under a name with its size."""
        for work, row in rows.items():
            self._rows.setdefault(work, {})[size] = row
            key = f"{self._report.scenario}: {work}"
            self._report.results.rows[f"{key}, {size} {self._sizes}"] = self._report.results.rows.pop(key)

    def summarize(self):
        """Print all sizes side by side, each in multiples of the smallest. The largest one's is a figure."""
        for work, rows in self._rows.items():
            sizes = list(rows)
            print(f"\n{work}, by the number of {self._sizes}\n{'':8}" + " ".join(f"{size:>18,}" for size in sizes))
            for name, values in (
                ("CPU ms", [row.all_cpu_ms for row in rows.values()]),
                ("p50 ms", [row.times_ms[50] for row in rows.values()]),
            ):
                cells = [f"{value:.2f} ({value / values[0]:.2f} ×)" for value in values]
                print(f"{name:8}" + " ".join(f"{cell:>18}" for cell in cells), flush=True)
                growth = values[-1] / values[0]
                if self._is_linear:
                    # 1 is linear.
                    growth /= sizes[-1] / sizes[0]
                each = f", for each of the {self._sizes}" if self._is_linear else ""
                self._report.figure(
                    f"{work}: {name} with {sizes[-1]:,} {self._sizes}, against {sizes[0]:,}{each}", growth, "×"
                )


@scenario("growth", is_default=False)
def growth(shop, report):
    # An order of 100 lines needs as many products.
    first_product = add_products(shop)
    series = [_replicas(shop, report), _lines(shop, report), _sockets(shop, report)]
    series.append(_tables(shop, report, first_product))
    for each in series:
        each.summarize()
    shop.check_books()
    report.note("The books are right.")


def _place(shop, report, lines):
    shop.deliver_orders()
    work, tokens = f"POST /orders, {CONNECTIONS} connections", shop.customers(CUSTOMERS)
    return {work: place_orders(shop, report, work, CONNECTIONS, shop.products(), tokens, lines)}


def _replicas(shop, report):
    """On a machine with few cores they do not add throughput, but show their cost."""
    series = Series(report, "replicas of each process")
    for replicas in REPLICAS:
        shop.scale(**dict.fromkeys(PARTS, replicas))
        series.title(replicas)
        series.add(replicas, _place(shop, report, 2))
    shop.scale()
    return series


def _lines(shop, report):
    series = Series(report, "lines", is_linear=True)
    for lines in LINES:
        series.title(lines)
        series.add(lines, _place(shop, report, lines))
    return series


def _sockets(shop, report):
    series = Series(report, "sockets")
    for number in SOCKETS:
        series.title(number)
        # Of each message: a push to all costs that many.
        work = "a message to a socket"
        row, memory_bytes, push_ms = push_to_all(shop, report, work, number)
        report.figure(f"memory of each of {number:,} sockets", memory_bytes / 1000, "kB")
        report.figure(f"a push to {number:,} sockets, until the last has it", push_ms, "ms")
        series.add(number, {work: row})
    return series


def _tables(shop, report, first_product):
    series, before = Series(report, "orders"), 0
    for number in ORDERS:
        print(f"\nFilling the databases with {number - before:,} orders more", flush=True)
        add_orders(shop, first_product, number - before)
        before = number
        series.title(number)
        admin = authorization(shop.admin())
        product = request("GET", f"/products/{shop.products()[0]['id']}", **admin)
        work = "a product, not cached"
        series.add(number, {work: report.requests(work, shop.port, all_send(product))})
        series.add(number, list_rows(shop, report))
        series.add(number, back_office_rows(shop, report))
        series.add(number, _place(shop, report, 2))
    return series
