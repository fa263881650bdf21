import pytest

from services.users import Users
from tests.shop import refusal_of, running_shop


@pytest.fixture(scope="package")
def shop(brokers, databases, smtp_server):
    with running_shop(brokers, databases, smtp_server, Users) as shop:
        yield shop


def log_in(shop, account, **changes):
    credentials = {"email": account["email"], "password": account["password"], **changes}
    return shop.rpc.users.login(**credentials)


def failed_login(shop, account, **changes):
    """The error of a login with a wrong password."""
    credentials = {"email": account["email"], "password": "wrong", **changes}
    return refusal_of(shop.rpc.users.login.call_async(**credentials))
