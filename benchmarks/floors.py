"""The floors: the least that a piece of the shop's work costs, by code that is not ours."""

import subprocess
from contextlib import closing
from itertools import repeat
from uuid import uuid4

import psycopg2

from benchmarks.load import BenchmarkFailed, LoadResult, request
from benchmarks.musts import CONNECTIONS, order_row
from benchmarks.peer_servers import (
    NAMEKO,
    PEERS,
    PYTHON,
    accepts_connections,
    environment,
    has_consumer,
    make_database,
    plain_uri,
    run_loop,
    running,
    server,
)
from benchmarks.report import FLASK
from benchmarks.shop import scenario
from nameko_reliable.testing.servers import find_postgres, free_port

CLIENTS = 32
TRANSACTION_CLIENTS = (1, 16)
PRODUCTS = 41


@scenario("floors", needs_services=False)
def floors(shop, report):
    """A web server's, a transaction's, a publish's and a mail's."""
    report.title("Floors: GET", ("peer",))
    _web_floor(shop, report, "bare WSGI callable", "wsgi_bare.py")
    _web_floor(shop, report, "Flask", "wsgi_flask.py")
    _web_floor(shop, report, FLASK.partition(": ")[2], "wsgi_flask.py", keep_alive=False)

    report.title("Floors: an order of two lines as one statement, by pgbench", ("postgres",))
    uri = plain_uri(make_database(shop, "floors"))
    with closing(psycopg2.connect(uri)) as connection, connection, connection.cursor() as cursor:
        cursor.execute((PEERS / "order_schema.sql").read_text())
    for clients in TRANSACTION_CLIENTS:
        name = f"bare order transaction, {clients} connection{'' if clients == 1 else 's'}"
        report.measure(name, lambda clients=clients: _pgbench(shop, uri, clients, report.seconds))

    report.title("Floors: a publish and its confirm, by py-amqp", ("peer", "rabbitmq"))
    rabbitmq = shop.servers["rabbitmq"].rabbitmq
    address = (f"127.0.0.1:{rabbitmq.port}", rabbitmq.user, rabbitmq.password)
    for mode in ("transient", "persistent"):
        report.measure(f"{mode} publish", lambda mode=mode: run_loop("publish.py", *address, mode, report.seconds))

    report.title("Floors: a mail of an order, by smtplib over a kept connection", ("peer",))
    report.measure("mail", lambda: run_loop("send_mail.py", shop.smtp.host, shop.smtp.port, report.seconds))


def _web_floor(shop, report, name, program, keep_alive=True):
    port = free_port()
    web = server(shop, program, [PYTHON, program, str(port)], lambda: accepts_connections(port))
    get = request("GET", "/products/1", **({} if keep_alive else {"Connection": "close"}))
    with running(shop, {"peer": web}):
        report.requests(name, port, lambda: [repeat(get)] * CLIENTS, keep_alive=keep_alive)


def _pgbench(shop, uri, clients, seconds):
    """The transactions of some clients for that time, prepared once. pgbench itself is the load generator."""
    folder = shop.folder / f"pgbench-{uuid4().hex}"
    folder.mkdir()
    options = ["--no-vacuum", "--protocol=prepared", f"--client={clients}", f"--time={seconds}"]
    logging = ["--log", f"--log-prefix={folder}/log"]
    program = find_postgres() / "pgbench"
    if not program.exists():
        raise BenchmarkFailed(f"pgbench must be installed first, beside {program.parent}/initdb.")
    command = [program, *options, *logging, f"--file={PEERS}/order.sql", uri]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkFailed(f"pgbench failed: {done.stderr.strip()}")
    load = LoadResult()
    load.seconds = seconds
    # A line for each transaction. The third word is its µs.
    load.latencies_ms = [
        int(line.split()[2]) / 1000 for path in folder.iterdir() for line in path.read_text().splitlines()
    ]
    return load


@scenario("plain_nameko", needs_services=False)
def plain_nameko(shop, report):
    """The orders of a shop on stock Nameko, without outbox, idempotency, reservation and mail."""
    uri, amqp_uri, port = make_database(shop, "plain_nameko"), shop.settings.amqp_uri(), free_port()
    with closing(psycopg2.connect(plain_uri(uri))) as connection, connection, connection.cursor() as cursor:
        cursor.execute(SHOP_TABLES)
    config = shop.folder / "plain_nameko.yaml"
    services = {"products": "Products", "orders": "Orders", "gateway": "Gateway"}
    databases = "".join(f"  plain_{part}:Base: {uri}\n" for part in ("products", "orders"))
    config.write_text(f"AMQP_URI: {amqp_uri}\nWEB_SERVER_ADDRESS: 127.0.0.1:{port}\nDB_URIS:\n{databases}")
    servers = {
        part: server(
            shop,
            f"plain-{part}",
            [NAMEKO, "run", "--config", config, f"nameko_shop:{name}"],
            (lambda: accepts_connections(port))
            if part == "gateway"
            else (lambda part=part: has_consumer(amqp_uri, f"rpc-plain_{part}")),
        )
        for part, name in services.items()
    }
    report.title("A shop on stock Nameko: POST /orders", (*services, "rabbitmq", "postgres"))
    with running(shop, servers):
        for connections in CONNECTIONS:
            report.requests(
                order_row(2, connections), port, lambda connections=connections: _ordering(connections), (201,)
            )


SHOP_TABLES = f"""
CREATE TABLE shop_products (
    id bigint PRIMARY KEY, name text NOT NULL, price numeric(12,2) NOT NULL, stock_quantity bigint NOT NULL
);
CREATE TABLE shop_orders (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, user_id bigint NOT NULL, status text NOT NULL,
    total_amount numeric(12,2) NOT NULL, created_at timestamp NOT NULL
);
CREATE INDEX ON shop_orders (user_id);
CREATE TABLE shop_order_items (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, order_id bigint NOT NULL REFERENCES shop_orders,
    product_id bigint NOT NULL, product_name text NOT NULL, product_price numeric(12,2) NOT NULL,
    quantity integer NOT NULL
);
CREATE INDEX ON shop_order_items (order_id);
INSERT INTO shop_products SELECT n, 'Product ' || n, 9.90, 1000000000 FROM generate_series(1, {PRODUCTS}) AS n;
"""


def _ordering(connections):
    """The same products for each connection as in the shop's own rows."""

    def place(number):
        items = [{"product_id": 1 + (number + line) % PRODUCTS, "quantity": 1} for line in range(2)]
        while True:
            yield request("POST", "/orders", {"user_id": number, "items": items})

    return [place(number) for number in range(connections)]
