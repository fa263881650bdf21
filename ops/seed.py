"""Fill a running shop with demo accounts and the catalogue, over the services' public RPCs.

    $ python ops/seed.py
    Seeded 3 accounts and 41 products.

It adds missing accounts and products, and changes no existing ones: an edited price, stock or password stays as it is,
and an inactive product stays inactive. The one exception: admin@forage.example is made an admin each time.
Reads AMQP_URI and AMQP_SSL_CA as `nameko run` does, from config.yaml. DEMO_PASSWORD (default `chanterelle`) is the
password of new accounts.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")  # see docs/decisions/0001

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


def main() -> None:
    password = os.environ.get("DEMO_PASSWORD") or "chanterelle"
    if not 8 <= len(password) <= 128:
        sys.exit(f"DEMO_PASSWORD has {len(password)} characters: set one of 8 to 128.")

    logging.getLogger("amqp").setLevel(logging.ERROR)  # it warns of a late ack when it closes
    setup_yaml_parser()
    config = checked(ShopSettings(), yaml.safe_load((ROOT / "config.yaml").read_text()))
    try:
        broker = {"AMQP_URI": config["AMQP_URI"], "AMQP_SSL": amqp_address(config).get("ssl")}
        with ClusterRpcProxy(broker, timeout=10) as shop:
            accounts = add_accounts(shop.users, password)
            products = add_products(shop.products, yaml.safe_load(CATALOGUE.read_text()))
    except (RpcTimeout, UnknownService) as error:
        sys.exit(f"The services users and products do not answer, start them first: {error}")
    except CONNECTION_ERRORS as error:
        sys.exit(f"No connection to the broker at AMQP_URI: {error}")

    if accounts or products:
        print(f"Seeded {accounts} accounts and {products} products.")
    else:
        print("Seeded before: nothing to add.")


def add_accounts(users: Any, password: str) -> int:
    """Register the missing accounts. Returns their number."""
    added = 0
    for email, username in ACCOUNTS.items():
        if any(user["email"] == email for user in users.list_users(q=email)["items"]):
            continue
        try:
            user = users.register(email=email, username=username, password=password)
        except Taken:  # by another seed.py at the same time, or the username by another account
            continue
        # Otherwise a sign-in with Google, which proves the address, would delete the password.
        proof = users.create_mailed_token(user_id=user["id"], email=email, purpose="email_verification")
        users.verify_email(token=proof["token"])
        added += 1
    # Each time, because a run may have been killed after the registration.
    users.set_role("admin@forage.example", role="admin")
    return added


def add_products(products: Any, catalogue: list[dict[str, Any]]) -> int:
    """Create the products with new SKUs. Returns their number."""
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


def skus(products: Any, is_active: bool) -> Iterator[str]:
    """The SKUs of all active or of all inactive products."""
    offset, total = 0, 1
    while offset < total:
        page = products.list_products(limit=PAGE, offset=offset, is_active=is_active, sort_by="created_at")
        yield from (product["sku"] for product in page["items"])
        offset, total = offset + PAGE, page["total"]


if __name__ == "__main__":
    main()
