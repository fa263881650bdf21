import os
import secrets
from pathlib import Path

import pytest

from contracts.types import SERVICES
from dev.releases import unpacked_release
from dev.servers import make_databases
from dev.settings import ROOT
from nameko_reliable.testing.servers import CannotStart
from tests.factories import a_product, an_account
from tests.infrastructure.configuration import configuration

from .mixed_shop import NEW, OLD, MixedShop, Release, replicas
from .people import Person, open_account


@pytest.fixture(scope="session")
def old_tree():
    """The source tree of the release FROM, which `make test-upgrade` sets."""
    trees = Path(os.environ.get("LOCAL_DIR") or ROOT / ".local").absolute() / "releases"
    try:
        return unpacked_release(os.environ["FROM"], trees)
    except CannotStart as reason:
        pytest.exit(f"forage: {reason}", returncode=1)


@pytest.fixture(scope="session")
def shop(old_tree, servers, brokers, smtp_server, sign_in_provider_server, tmp_path_factory):
    """A shop of the old release: its databases, and one replica of each of its processes."""
    passwords = {service: secrets.token_hex(16) for service in SERVICES}
    postgres, broker = servers[0].postgres, brokers.new()
    make_databases(postgres, passwords)
    config = configuration(
        broker,
        {service: postgres.uri(f"{service}_db", service, password) for service, password in passwords.items()},
        smtp_server,
        # Multiplied by RATE_LIMIT_SCALE, like all limits.
        MAX_OPEN_UNITS_UNPROVEN=1,
        **sign_in_provider_server.settings,
    )
    folder = tmp_path_factory.mktemp("releases")
    releases = {OLD: Release(old_tree, folder / OLD, config), NEW: Release(ROOT, folder / NEW, config)}
    shop = MixedShop(releases, config, broker, smtp_server)
    try:
        releases[OLD].operate("migrate")
        shop.change_to(replicas(OLD))
        yield shop
    finally:
        shop.stop()
        brokers.delete(broker)


@pytest.fixture(scope="session")
def customer(shop):
    """Registered under the old release, like the admin. The address is proven, since unproven ones get few mails."""
    return open_account(shop.smtp, shop.gateways[0])


@pytest.fixture(scope="session")
def regular(shop):
    """A customer who places orders while replicas start and stop, and so gets many mails."""
    return open_account(shop.smtp, shop.gateways[0])


@pytest.fixture(scope="session")
def admin(shop):
    """An admin whose address is not proven."""
    admin = Person(an_account())
    assert admin.post(shop.gateways[0], "/users/register", admin.account).status_code == 201
    shop.rpc.users.set_role(email=admin.email, role="admin")
    admin.log_in(shop.gateways[0])
    return admin


@pytest.fixture(scope="session")
def product(shop, admin):
    answer = admin.post(shop.gateways[0], "/products", a_product(stock_quantity=5000))
    assert answer.status_code == 201, answer.text
    return answer.json()
