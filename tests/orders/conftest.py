import pytest

from nameko_reliable import pool
from services.orders import Orders
from services.products import Products
from tests.shop import running_shop


@pytest.fixture(scope="package", autouse=True)
def long_lock_waits():
    """On a busy machine one of dozens of concurrent calls may wait longer for a lock than PostgreSQL is allowed to."""
    options = pool.CONNECTION_SETTINGS["options"].replace("lock_timeout=4s", "lock_timeout=60s")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(pool.CONNECTION_SETTINGS, "options", options)
        yield


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
