"""The commands of docs/operations.md for backup and restore."""

import os
import re
import shutil
import subprocess
import textwrap
from urllib.parse import urlsplit

import psycopg2
import pytest

from contracts.orders import OrderNotFound
from contracts.types import SERVICES
from dev.settings import ROOT
from nameko_reliable.testing.servers import find_postgres
from services.orders import Orders
from services.products import Products
from tests.factories import a_line, a_product, place_order
from tests.shop import Shop

DOCUMENT = (ROOT / "docs" / "operations.md").read_text().partition("\n## Back up\n")[2]
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"^ *```sh\n(.*?)^ *```", DOCUMENT, re.DOTALL | re.MULTILINE)]
BACK_UP, RESTORE, CHECK = BLOCKS
[EMPTY_DATABASE] = re.findall(r"^ *```sql\n( *CREATE DATABASE .*?)^ *```", DOCUMENT, re.DOTALL | re.MULTILINE)
[ADDRESSES_ON_COMPOSE] = re.findall(r"^docker compose run .* bash\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def empty_databases(databases):
    made = {service: databases.new_empty(service, EMPTY_DATABASE) for service in SERVICES}
    yield made
    for uri in made.values():
        databases.drop(uri)


def run(commands, folder, uris):
    addresses = {f"{service.upper()}_DB_URI": uri for service, uri in uris.items()}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env={**addresses, "BACKUP": str(folder), "PATH": f"{find_postgres()}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_a_restored_database_accepts_only_its_own_service(empty_databases):
    own = urlsplit(empty_databases["orders"].replace("+psycopg2", ""))
    other = urlsplit(empty_databases["products"].replace("+psycopg2", ""))

    psycopg2.connect(own.geturl()).close()
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        psycopg2.connect(other._replace(path=own.path).geturl())


def test_on_compose_the_database_addresses_come_from_the_secrets(tmp_path):
    for service in SERVICES:
        (tmp_path / f"{service}_db_uri").write_text(f"postgresql+psycopg2://{service}:secret@postgres/{service}_db\n")

    output = run(f"{ADDRESSES_ON_COMPOSE.replace('/run/secrets', str(tmp_path))} printenv USERS_DB_URI", tmp_path, {})

    assert output == "postgresql+psycopg2://users:secret@postgres/users_db\n"


def stock(shop, product):
    return shop.rpc.products.get_product(product_id=product["id"])["stock_quantity"]


def states(shop):
    return {state for (state,) in shop.sql("products", "SELECT state FROM reservations")}


def test_a_shop_restored_from_backups_of_different_times_works(
    own_shop, config, broker, database, empty_databases, tmp_path
):
    uris = {service: database(service) for service in SERVICES}
    containers = [own_shop.run(service_class) for service_class in (Products, Orders)]
    product = own_shop.rpc.products.create_product(**a_product(stock_quantity=10))
    kept = place_order(own_shop.rpc, a_line(product, 2))
    run(BACK_UP, tmp_path / "first", uris)
    lost = place_order(own_shop.rpc, a_line(product, 3))
    own_shop.sql("products", "UPDATE reservations SET created_at = now() - interval '11 minutes'")
    own_shop.fire(containers[0], "settle_open_reservations")
    assert states(own_shop) == {"committed"}
    run(BACK_UP, tmp_path / "second", uris)
    for container in containers:
        container.stop()

    # As if the second order had been placed during the backup, after the dump of orders.
    shutil.copy(tmp_path / "first" / "orders.dump", tmp_path / "second")
    shutil.copy(tmp_path / "first" / "begun", tmp_path / "second")
    run(RESTORE, tmp_path / "second", empty_databases)

    restored = Shop({**config, "DB_URIS": empty_databases, "SETTLE_AFTER_SECONDS": "0"}, broker)
    try:
        products = restored.run(Products)
        restored.run(Orders)
        assert stock(restored, product) == 5
        restored.fire(products, "settle_open_reservations")
        assert restored.rpc.orders.get_order(order_id=kept["id"]) == kept
        with pytest.raises(OrderNotFound):
            restored.rpc.orders.get_order(order_id=lost["id"])
        assert (stock(restored, product), states(restored)) == (8, {"committed", "released"})
        new = place_order(restored.rpc, a_line(product, 1))
        assert new["id"] > lost["id"] + 1000
        restored.fire(products, "settle_open_reservations")
        assert states(restored) == {"committed", "released"}
        assert run(CHECK, tmp_path / "second", empty_databases) == ""

        # A real mismatch must be reported.
        restored.sql("products", "UPDATE products SET stock_quantity = stock_quantity + 1")
        restored.sql("products", "UPDATE reservations SET state = 'released' WHERE state = 'committed'")
        found = run(CHECK, tmp_path / "second", empty_databases).splitlines()
        assert {line.split(",")[0] for line in found} == {
            "order without stock",
            "product whose stock is not the sum of its ledger",
        }
    finally:
        restored.stop()
