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
    """`events_of(order)`: the events of the order, none of which is published yet."""
    with shop.outbox(Orders).held() as pending:
        yield lambda order: pending(key=order["id"])


@pytest.fixture
def busy_machine(monkeypatch):
    """Dozens of calls at once may take it longer than the five seconds that each has."""
    monkeypatch.setattr("nameko_reliable.rpc.CALL_SECONDS", 60)
