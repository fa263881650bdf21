import pytest

from services.notifications import Notifications
from tests.shop import running_shop


@pytest.fixture(scope="package")
def shop(brokers, databases, smtp_server):
    with running_shop(brokers, databases, smtp_server, Notifications) as shop:
        yield shop
