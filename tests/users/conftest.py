import pytest

from services.users import Users
from tests.shop import running_shop


@pytest.fixture(scope="package")
def shop(brokers, databases, smtp_server):
    with running_shop(brokers, databases, smtp_server, Users) as shop:
        yield shop
