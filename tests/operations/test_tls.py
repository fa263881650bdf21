"""Broker and databases over TLS: certificates and host names are verified, and other servers get no data."""

import os
import re
import shutil
import subprocess
import sys
from urllib.parse import quote, urlsplit

import pytest

from contracts.settings import ShopSettings
from dev.run import require_given_broker
from dev.settings import ROOT
from nameko_reliable.amqp.broker import connect
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.settings import amqp_address, checked
from nameko_reliable.testing.servers import CannotStart, free_port
from nameko_reliable.testing.waiting import wait_for
from services.orders import Orders
from services.products import Products
from tests.factories import a_line, a_product, place_order
from tests.infrastructure.certificates import Authority
from tests.infrastructure.processes import environment_of
from tests.shop import Shop

NAME = "localhost"


@pytest.fixture(scope="module")
def authority(local_folder):
    return Authority(local_folder / "authority")


@pytest.fixture(scope="module")
def other_authority(local_folder):
    return Authority(local_folder / "other_authority")


@pytest.fixture(scope="module")
def amqps_port(servers, authority):
    """The port where the session's broker only accepts TLS."""
    certificate, key = authority.issue(NAME)
    port, files = free_port(), f'[{{certfile,"{certificate}"}},{{keyfile,"{key}"}}]'
    servers[1].control("eval", f"rabbit_networking:start_ssl_listener({port}, {files}, 2).")
    return port


@pytest.fixture(scope="module")
def databases_with_tls(servers, authority):
    """The session's PostgreSQL offers TLS during these tests."""
    postgres = servers[0].postgres
    files = {}
    for path, setting in zip(authority.issue(NAME), ("ssl_cert_file", "ssl_key_file"), strict=True):
        copy = postgres.folder / "data" / path.name
        shutil.copy(path, copy)
        copy.chmod(0o600)
        if postgres.account:
            shutil.chown(copy, postgres.account)
        files[setting] = path.name
    reconfigure(postgres, *(f"ALTER SYSTEM SET {name} = '{file}'" for name, file in files.items()))
    reconfigure(postgres, "ALTER SYSTEM SET ssl = on")
    yield
    reconfigure(postgres, "ALTER SYSTEM RESET ALL")


def reconfigure(postgres, *statements):
    connection = postgres.connect()
    connection.autocommit = True
    for statement in (*statements, "SELECT pg_reload_conf()"):
        connection.cursor().execute(statement)
    connection.close()


def database_over_tls(uri, authority, host=NAME):
    return (
        f"{uri.replace('@127.0.0.1', f'@{host}')}?sslmode=verify-full&sslrootcert={quote(str(authority.certificate))}"
    )


@pytest.fixture
def broker_over_tls(brokers, broker, amqps_port, authority):
    """`broker_over_tls()`: the settings. `host` and `ca`, the authority's file, can be replaced."""

    def settings(host=NAME, ca=authority.certificate):
        password = brokers.rabbitmq.password
        uri = f"amqps://{brokers.rabbitmq.user}:{password}@{host}:{amqps_port}/{broker.vhost}"
        return {"AMQP_URI": uri, "AMQP_SSL_CA": str(ca or "")}

    return settings


def address(settings):
    return amqp_address(checked(ShopSettings(), settings))


def test_the_shop_works_over_tls(config, broker, database, databases_with_tls, broker_over_tls, authority):
    uris = {name: database_over_tls(database(name), authority) for name in ("orders", "products")}
    nameko_words = {"AMQP_SSL": {"ca_certs": str(authority.certificate), "server_hostname": NAME}}
    shop = Shop({**config, **broker_over_tls(), **nameko_words, "DB_URIS": uris}, broker)
    try:
        for service_class in (Products, Orders):
            shop.run(service_class)

        product = shop.rpc.products.create_product(**a_product())
        order = place_order(shop.rpc, a_line(product))
        shop.rpc.orders.update_status(order_id=order["id"], status="cancelled")

        # By an event.
        wait_for(lambda: shop.sql("products", "SELECT state FROM reservations") == [("released",)])
        connections = "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
        # Without processes of other shops, which may still run.
        names = [urlsplit(uri).path[1:] for uri in uris.values()]
        [(all_of_them, encrypted)] = shop.sql(
            "orders", connections + "WHERE application_name IN ('orders', 'products') AND datname = ANY (%s)", names
        )
        assert all_of_them == encrypted > 0
        assert_shell_works(
            {**config, **broker_over_tls(), "DB_URIS": dict.fromkeys(("users", "notifications"), "") | uris}
        )
    finally:
        shop.stop()


def assert_shell_works(config):
    """With the settings of docs/operations.md, but for the name: Kombu would take 127.0.0.1 for localhost."""
    ca = config["AMQP_SSL_CA"]
    done = subprocess.run(
        [ROOT / ".venv/bin/nameko", "shell", "--config", "config.yaml"],
        input="print(n.rpc.products.list_products(limit=3)['total'])\n",
        env={**environment_of(config), "AMQP_SSL": f"{{ca_certs: {ca}, server_hostname: {NAME}}}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ">>> 1\n" in done.stdout, done.stdout + done.stderr


def test_without_amqp_ssl_ca_the_systems_authorities_are_trusted(broker_over_tls, authority, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))

    connect(address(broker_over_tls(ca=None))).close()


def test_make_run_connects_to_a_given_broker_like_the_processes(broker_over_tls, other_authority):
    require_given_broker(checked(ShopSettings(), broker_over_tls()))
    with pytest.raises(CannotStart, match="CERTIFICATE_VERIFY_FAILED"):
        require_given_broker(checked(ShopSettings(), broker_over_tls(ca=other_authority.certificate)))


def test_make_run_and_the_seed_report_a_refused_broker_password_in_a_sentence(broker):
    config = {"AMQP_URI": broker.uri.replace("@", "x@")}

    with pytest.raises(CannotStart, match="ACCESS_REFUSED"):
        require_given_broker(checked(ShopSettings(), config))
    assert re.fullmatch(r"No connection to the broker at AMQP_URI: .*ACCESS_REFUSED.*\n", seed(config))


def seed(config):
    done = subprocess.run(
        [sys.executable, ROOT / "ops" / "seed.py"], env={**os.environ, **config}, capture_output=True, text=True
    )
    return done.stderr


def test_the_seed_connects_to_the_broker_like_the_processes(broker_over_tls, other_authority):
    # It connects, and finds no services.
    assert "The services users and products do not answer" in seed(broker_over_tls())
    assert "CERTIFICATE_VERIFY_FAILED" in seed(broker_over_tls(ca=other_authority.certificate))


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ({"ca": "other_authority"}, "unable to get local issuer certificate"),
        ({"ca": None}, "unable to get local issuer certificate"),
        ({"host": "127.0.0.1"}, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ],
    ids=str,
)
def test_a_broker_with_an_untrusted_certificate_is_refused(broker_over_tls, other_authority, who, reason):
    if who.get("ca"):
        who = {"ca": other_authority.certificate}

    with pytest.raises(OSError, match=reason):
        connect(address(broker_over_tls(**who)))


@pytest.mark.parametrize(
    ("issuer", "host", "reason"),
    [
        ("other_authority", NAME, "certificate verify failed"),
        ("authority", "127.0.0.1", '(and 1 other name) does not match host name "127.0.0.1"'),
    ],
)
def test_a_database_with_an_untrusted_certificate_is_refused(
    own_shop, database, databases_with_tls, request, caplog, issuer, host, reason
):
    uri = database_over_tls(database("products"), request.getfixturevalue(issuer), host)
    own_shop.run(Products, DB_URIS={"products": uri})

    with pytest.raises(DatabaseUnavailable):
        own_shop.rpc.products.list_products()

    assert reason in caplog.text


@pytest.mark.parametrize("ca", ["/nowhere", str(ROOT / "README.md")])
def test_an_invalid_authority_file_is_reported_in_a_sentence(ca):
    with pytest.raises(SystemExit, match="AMQP_SSL_CA must be a file with an authority's certificate"):
        address({"AMQP_URI": "amqps://localhost", "AMQP_SSL_CA": ca})


def test_an_authority_without_tls_is_reported_in_a_sentence(authority):
    with pytest.raises(SystemExit, match=r"^AMQP_SSL_CA is set, and AMQP_URI is no amqps:// address"):
        address({"AMQP_URI": "amqp://localhost", "AMQP_SSL_CA": str(authority.certificate)})
