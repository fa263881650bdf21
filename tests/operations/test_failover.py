"""A database moves to its standby as in docs/operations.md: nothing is lost, and no process is restarted."""

from uuid import uuid4

import pytest
import requests
from sqlalchemy.engine import make_url

from contracts.orders import OrderAbandoned
from gateway import Gateway
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.servers import free_port
from nameko_reliable.testing.waiting import wait_for
from services.products import Products
from tests.factories import a_line, a_product


@pytest.fixture
def primary(servers, database_proxy):
    """The session's server, at an address that can become unreachable."""
    yield database_proxy("products")
    restore(servers[0])


@pytest.fixture
def standby(servers, database, local_folder):
    """A standby of the session's server, with the database of products."""
    database("products")
    standby = servers[0].copy(local_folder / f"standby-{uuid4().hex}", is_standby=True)
    standby.start()
    standby.wait_until_ready()
    yield standby
    standby.stop()


def vanish(server, primary):
    primary.go_away()


def demote(server, primary):
    """Make the server read-only. Open connections stay open."""
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    server.execute("SELECT pg_reload_conf()")


def restore(server):
    server.execute("ALTER SYSTEM RESET default_transaction_read_only")
    server.execute("SELECT pg_reload_conf()")


def test_a_service_with_a_read_only_database_is_not_ready_even_without_writes(own_shop, servers, primary):
    products = Watched(own_shop.run(Products, DB_URIS={"products": primary.uri}))
    assert products.get("/readyz").status_code == 200

    demote(servers[0], primary)

    wait_for(lambda: products.get("/readyz").text == "The database is read-only.\n")
    restore(servers[0])
    wait_for(lambda: products.get("/readyz").status_code == 200)


@pytest.mark.parametrize("end", [vanish, demote])
def test_the_shop_moves_to_the_promoted_standby_when_the_primary_ends(
    own_shop, database, servers, primary, standby, end
):
    url = make_url(database("products"))
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.postgres.port}"
    uri = f"postgresql+psycopg2://{url.username}:{url.password}@{hosts}/{url.database}"
    products = Watched(own_shop.run(Products, DB_URIS={"products": uri}))
    port = free_port()
    own_shop.run(Gateway, GATEWAY_PORT=port)
    gateway = f"http://127.0.0.1:{port}"
    rpc = own_shop.rpc.products
    product = rpc.create_product(**a_product(stock_quantity=10))
    reservation_id = str(uuid4())
    rpc.reserve_stock(reservation_id=reservation_id, lines=[a_line(product, 3)])

    [(written,)] = servers[0].execute("SELECT pg_current_wal_insert_lsn()")
    wait_for(lambda: standby.execute(f"SELECT pg_last_wal_replay_lsn() >= '{written}'") == [(True,)])

    end(servers[0], primary)
    own_shop.publish(OrderAbandoned(reservation_id=reservation_id))

    wait_for(lambda: products.count("forage_event_handler_duration_seconds_count", outcome="postponed") > 2)
    # On a busy machine both servers may take longer to answer than the service waits.
    wait_for(lambda: products.get("/readyz").text == "The database is read-only.\n")
    assert requests.get(f"{gateway}/products").status_code == 503
    assert wait_for(lambda: requests.get(f"{gateway}/health").json()["services"]["products"]["status"] == "down")
    with pytest.raises(DatabaseUnavailable):
        rpc.create_product(**a_product())

    standby.execute("SELECT pg_promote()")

    wait_for(lambda: products.get("/readyz").status_code == 200)
    wait_for(lambda: rpc.get_product(product_id=product["id"])["stock_quantity"] == 10)
    rpc.create_product(**a_product())
    assert requests.get(f"{gateway}/products").status_code == 200
    assert products.count("forage_event_handler_duration_seconds_count", outcome="retried") == 0
    assert rpc.list_parked()["total"] == 0
