import pytest

from services.orders import Orders
from services.products import Products
from tests.shop import running_shop


@pytest.fixture(scope="package")
def shop(brokers, databases, smtp_server):
    with running_shop(brokers, databases, smtp_server, Orders, Products) as shop:
        yield shop


@pytest.fixture
def events_of(shop):
    """`events_of(order)`: the unpublished events of the order."""
    with shop.outbox(Orders).held() as pending:
        yield lambda order: pending(key=order["id"])


@pytest.fixture
def long_deadlines(monkeypatch):
    """Dozens of concurrent calls may take longer than the default deadline of five seconds."""
    monkeypatch.setattr("nameko_reliable.rpc.CALL_SECONDS", 60)
