"""Orders with their follow-up work, which is to store notifications and send mails, and the mix of a shop."""

import random
from itertools import cycle, islice, repeat
from uuid import uuid4

from benchmarks import load
from benchmarks.load import request
from benchmarks.musts import CONNECTIONS, order_row
from benchmarks.reads import authorization, etag_of
from benchmarks.shop import CUSTOMERS, scenario, seconds_for

BURST = 500
BURST_CLIENTS = 64
CLIENTS = 32
# Of 100 requests of the mix.
MIX = {
    "product": 50,
    "page": 20,
    "categories": 8,
    "unchanged": 10,
    "orders": 5,
    "notifications": 4,
    "order": 3,
}
MIX_STATUSES = (200, 201, 304)


@scenario("orders")
def orders(shop, report):
    """Orders of one and two lines. The rate counts an order when its follow-up work is done."""
    report.title("Orders, POST, until their mails are sent")
    products, tokens = shop.products(), shop.customers(CUSTOMERS)
    bytes_before, orders_before = shop.database_bytes(), shop.count("orders", "orders")
    for lines in (1, 2):
        for clients in CONNECTIONS:
            place_orders(shop, report, order_row(lines, clients), clients, products, tokens, lines)
    place_orders(shop, report, f"1 line of one product, {CLIENTS} connections", CLIENTS, products[:1], tokens, 1)
    _burst(shop, report, products, tokens)
    shop.check_books()
    report.note("The books are right.")
    placed = shop.count("orders", "orders") - orders_before
    grown = {service: (size - bytes_before[service]) / placed for service, size in shop.database_bytes().items()}
    each = ", ".join(f"{service} {size / 1024:.1f}" for service, size in grown.items())
    report.note(f"KiB that each of the {placed} orders added to the databases: {each}.")


def place_orders(shop, report, name, clients, products, tokens, lines=1):
    return report.requests(
        name, shop.port, lambda: ordering(clients, products, tokens, lines), (201,), shop.wait_until_settled
    )


def ordering(clients, products, tokens, lines=1):
    """Clients that each place orders without end. clients: their number. lines: of each order, one unit each."""

    def place(number):
        chosen = [products[(number + line) % len(products)] for line in range(lines)]
        token = tokens[number % len(tokens)]
        items = [{"product_id": each["id"], "quantity": 1, "unit_price": each["price"]} for each in chosen]
        while True:
            headers = {**authorization(token), "Idempotency-Key": uuid4().hex}
            yield request("POST", "/orders", {"items": items}, **headers)

    return [place(number) for number in range(clients)]


def _burst(shop, report, products, tokens):
    """A fixed number of orders. The clients share them, so all stop at about the same time."""
    waited = []

    def run():
        shares = [BURST // BURST_CLIENTS + (number < BURST % BURST_CLIENTS) for number in range(BURST_CLIENTS)]
        clients = ordering(BURST_CLIENTS, products, tokens, 2)
        return load.http(
            shop.port, [islice(client, share) for client, share in zip(clients, shares, strict=True)], expected=(201,)
        )

    def settle():
        waited.append(seconds_for(lambda: shop.wait_until_settled() or True))

    shop.wait_until_settled()
    report.measure(f"burst of {BURST}, {BURST_CLIENTS} at once", run, settle)
    report.figure("last mail after the last answer of the burst", waited[0], "s")


@scenario("mix")
def mix(shop, report):
    """A shop's requests at once: most read the catalogue, some read a customer's lists, few place an order."""
    report.title("The mix of a shop: " + ", ".join(f"{count} % {name}" for name, count in MIX.items()))
    measure_mix(shop, report)


def measure_mix(shop, report):
    return report.requests(
        f"{CLIENTS} connections", shop.port, lambda: mixing(shop), MIX_STATUSES, shop.wait_until_settled
    )


def mixing(shop):
    """Clients that each send the requests of the mix without end. Their tokens are valid for 5 minutes at least."""
    products, tokens = shop.products(), shop.customers(CUSTOMERS)
    product = f"/products/{products[0]['id']}"
    etag = etag_of(shop, product)
    # The same order in each run.
    shuffle = random.Random(1).shuffle  # noqa: S311

    def client(number):
        headers = authorization(tokens[number % len(tokens)])
        [orders_of_one] = ordering(1, products[number % len(products) :], [tokens[number % len(tokens)]], 2)
        sources = {
            "product": cycle([request("GET", f"/products/{each['id']}") for each in products]),
            "page": cycle([request("GET", f"/products?limit=20&offset={offset}") for offset in (0, 20, 40)]),
            "categories": repeat(request("GET", "/products/categories")),
            "unchanged": repeat(request("GET", product, If_None_Match=etag)),
            "orders": repeat(request("GET", "/orders?limit=10", **headers)),
            "notifications": repeat(request("GET", "/notifications?page_size=10", **headers)),
            "order": orders_of_one,
        }
        while True:
            names = [name for name, count in MIX.items() for _ in range(count)]
            shuffle(names)
            for name in names:
                yield next(sources[name])

    return [client(number) for number in range(CLIENTS)]


@scenario("replicas")
def replicas(shop, report):
    """Orders with more replicas. On a machine with few cores they do not add throughput, but show their cost."""
    report.title(f"Orders of {CLIENTS} customers, with more replicas of each of orders, products and gateway")
    products, tokens = shop.products(), shop.customers(CUSTOMERS)
    for replicas in (1, 2, 3):
        shop.scale(orders=replicas, products=replicas, gateway=replicas)
        place_orders(shop, report, f"{replicas} of each", CLIENTS, products, tokens)
    shop.scale()
    shop.check_books()
    report.note("The books are right.")
