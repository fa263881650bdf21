"""The disk of a database is full: reads succeed and writes fail until there is space again."""

import os
import pwd
import subprocess
from uuid import uuid4

import pytest
import requests

from contracts.orders import OrderAbandoned
from gateway import Gateway
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.servers import free_port
from nameko_reliable.testing.waiting import wait_for
from services.products import Products
from tests.factories import a_line, a_product

AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


@pytest.fixture
def small_disk(servers):
    """A folder of PostgreSQL with 32 MB of space."""
    postgres = servers[0].postgres
    folder = postgres.folder.resolve() / f"small-disk-{uuid4().hex}"
    folder.mkdir()
    owner = pwd.getpwnam(postgres.account).pw_uid if postgres.account else os.getuid()
    subprocess.run([*AS_ROOT, "mount", "-t", "tmpfs", "-o", f"size=32m,uid={owner}", "tmpfs", folder], check=True)
    yield folder
    subprocess.run([*AS_ROOT, "umount", folder], check=True)
    folder.rmdir()


@pytest.fixture
def database_on_it(servers, database, small_disk):
    """The URI of a database of products with all its files in that folder."""
    uri = database("products")
    name = uri.rpartition("/")[2]
    servers[0].execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    servers[0].execute(f'ALTER DATABASE "{name}" SET TABLESPACE small')
    yield uri
    servers[0].execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    servers[0].execute("DROP TABLESPACE small")


def fill(disk):
    with pytest.raises(OSError, match="No space left"), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def test_a_service_with_a_full_disk_is_not_ready_and_continues_once_there_is_space(
    own_shop, small_disk, database_on_it
):
    products = Watched(own_shop.run(Products, DB_URIS={"products": database_on_it}))
    port = free_port()
    own_shop.run(Gateway, GATEWAY_PORT=port)
    rpc = own_shop.rpc.products
    product = rpc.create_product(**a_product(stock_quantity=10))
    reservation_id = str(uuid4())
    rpc.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3)])
    assert products.get("/readyz").status_code == 200

    fill(small_disk)

    wait_for(lambda: products.get("/readyz").text == "The database's disk is full.\n")
    health = requests.get(f"http://127.0.0.1:{port}/health").json()
    assert health["services"]["products"]["status"] == "down"
    with pytest.raises(DatabaseUnavailable):
        rpc.create_product(**a_product(description=os.urandom(5_000).hex()))

    (small_disk / "filler").unlink()

    wait_for(lambda: products.get("/readyz").status_code == 200)
    own_shop.publish(OrderAbandoned(reservation_id=reservation_id))
    wait_for(lambda: rpc.get_product(product_id=product["id"])["stock_quantity"] == 10)
