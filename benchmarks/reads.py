"""Reads of the catalogue and of a customer's lists, and logins."""

from itertools import cycle, repeat

from benchmarks import load
from benchmarks.load import request
from benchmarks.shop import CUSTOMERS, PASSWORD, scenario

CLIENTS = 32
LISTED = 10
# Each takes 0.3 s of CPU.
LOGINS_AT_ONCE = 8


def all_send(data):
    return lambda: [repeat(data)] * CLIENTS


def authorization(token):
    return {"Authorization": f"Bearer {token}"}


def etag_of(shop, path):
    with load.connect(shop.port, 0) as socket:
        socket.sendall(request("GET", path))
        return socket.recv(65536).partition(b"ETag: ")[2].partition(b"\r\n")[0].decode()


@scenario("catalogue")
def catalogue(shop, report):
    """Reads of the catalogue: from the gateway's cache, and, for admins, from products."""
    report.title("Catalogue, GET")
    product = f"/products/{shop.products()[0]['id']}"
    admin = authorization(shop.admin())
    unchanged = request("GET", product, If_None_Match=etag_of(shop, product))
    report.requests("a product", shop.port, all_send(request("GET", product)))
    report.requests("a product, unchanged (304)", shop.port, all_send(unchanged), (304,))
    report.requests("a page of 20", shop.port, all_send(request("GET", "/products?limit=20")))
    report.requests("a product, not cached", shop.port, all_send(request("GET", product, **admin)))
    report.requests("a page of 20, not cached", shop.port, all_send(request("GET", "/products?limit=20", **admin)))


@scenario("lists")
def lists(shop, report):
    """The lists of a customer with 10 orders."""
    report.title("A customer's lists, GET")
    list_rows(shop, report)


def list_rows(shop, report, customer="reader"):
    """Returns {work: its row}."""
    token = shop.customer(customer)
    product = shop.products()[0]
    body = {"items": [{"product_id": product["id"], "quantity": 1}]}
    for _ in range(LISTED - len(shop.request("GET", "/orders", token=token))):
        shop.request("POST", "/orders", body, token)
    shop.wait_until_settled()
    works = {f"GET {path} ({LISTED} orders)": path for path in ("/orders", "/notifications")}
    return {
        work: report.requests(work, shop.port, all_send(request("GET", path, **authorization(token))))
        for work, path in works.items()
    }


@scenario("logins")
def logins(shop, report):
    """Correct passwords, hashed by bcrypt with the default of 12 rounds."""
    report.title("Logins, POST")
    shop.customers(CUSTOMERS)
    accounts = [
        {"email": f"customer-{number}@forage.example", "password": PASSWORD} for number in range(LOGINS_AT_ONCE)
    ]
    requests = [request("POST", "/users/login", account) for account in accounts]
    report.requests("one customer", shop.port, lambda: [cycle(requests)])
    report.requests(f"{LOGINS_AT_ONCE} customers", shop.port, lambda: [repeat(data) for data in requests])
