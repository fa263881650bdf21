"""Fill a running shop with demo accounts and the catalogue, over the services' public RPCs.

    $ python ops/seed.py
    Seeded 3 accounts and 41 products.

It adds what is missing and changes nothing that is there: a price, a stock or a password that
somebody edited stays as it is, and a product that was taken off the shelves stays off. The one
exception: admin@forage.example is made an admin each time.
Reads AMQP_URI and AMQP_SSL_CA as `nameko run` does, from config.yaml. DEMO_PASSWORD (default `chanterelle`)
is the password of the accounts it makes.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")  # docs/decisions/ says why it is here

import yaml  # noqa: E402
from nameko.cli.main import setup_yaml_parser  # noqa: E402
from nameko.exceptions import RpcTimeout, UnknownService  # noqa: E402
from nameko.standalone.rpc import ClusterRpcProxy  # noqa: E402

from contracts.settings import ShopSettings  # noqa: E402
from contracts.types import Taken  # noqa: E402
from nameko_reliable.amqp.broker import CONNECTION_ERRORS  # noqa: E402
from nameko_reliable.settings import amqp_address, checked  # noqa: E402

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
ACCOUNTS = {"admin@forage.example": "admin", "ada@forage.example": "ada", "bo@forage.example": "bo.forage"}
PAGE = 100


def main():
    password = os.environ.get("DEMO_PASSWORD") or "chanterelle"
    if not 8 <= len(password) <= 128:
        sys.exit(f"DEMO_PASSWORD has {len(password)} characters: set one of 8 to 128.")

    logging.getLogger("amqp").setLevel(logging.ERROR)  # it warns of a late ack as it closes
    setup_yaml_parser()
    config = checked(ShopSettings(), yaml.safe_load((ROOT / "config.yaml").read_text()))
    try:
        broker = {"AMQP_URI": config["AMQP_URI"], "AMQP_SSL": amqp_address(config).get("ssl")}
        with ClusterRpcProxy(broker, timeout=10) as shop:
            accounts = add_accounts(shop.users, password)
            products = add_products(shop.products, yaml.safe_load(CATALOGUE.read_text()))
    except (RpcTimeout, UnknownService) as error:
        sys.exit(f"Nothing answers at the broker, start the services users and products first: {error}")
    except CONNECTION_ERRORS as error:
        sys.exit(f"No broker at AMQP_URI lets us in: {error}")

    if accounts or products:
        print(f"Seeded {accounts} accounts and {products} products.")
    else:
        print("Seeded before: nothing to add.")


def add_accounts(users, password):
    """Register those who are missing; return how many were."""
    added = 0
    for email, username in ACCOUNTS.items():
        if any(user["email"] == email for user in users.list_users(q=email)["items"]):
            continue
        try:
            user = users.register(email=email, username=username, password=password)
        except Taken:  # by another seed.py at the same time, or the name by somebody else
            continue
        # Else a sign-in with Google, where the provider proves the address, would void the password.
        proof = users.create_mailed_token(user_id=user["id"], email=email, purpose="email_verification")
        users.verify_email(token=proof["token"])
        added += 1
    # Every time: a run that was killed after the registration would leave a shop without an admin.
    users.set_role("admin@forage.example", role="admin")
    return added


def add_products(products, catalogue):
    """Create those whose SKU is unknown; return how many were."""
    known = {sku for is_active in (True, False) for sku in skus(products, is_active)}
    added = 0
    for product in catalogue:
        if product["sku"] in known:
            continue
        try:
            products.create_product(**product)
            added += 1
        except Taken:  # by another seed.py at the same time
            continue
    return added


def skus(products, is_active):
    """The SKU of every product on the shelves, or of every one taken off them."""
    offset, total = 0, 1
    while offset < total:
        page = products.list_products(limit=PAGE, offset=offset, is_active=is_active, sort_by="created_at")
        yield from (product["sku"] for product in page["items"])
        offset, total = offset + PAGE, page["total"]


if __name__ == "__main__":
    main()
