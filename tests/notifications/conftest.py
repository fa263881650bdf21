import pytest

from contracts.notifications import NotificationCreated
from nameko_reliable.events import broadcast_handler
from services.notifications import Notifications
from tests.shop import running_shop


@pytest.fixture(scope="package")
def shop(brokers, databases, smtp_server):
    with running_shop(brokers, databases, smtp_server, Notifications) as shop:
        yield shop


@pytest.fixture
def pushes(shop):
    """What a gateway would push to its sockets, as it comes."""
    heard = []

    class Gateway:
        name = "gateway"

        @broadcast_handler(NotificationCreated)
        def push(self, event):
            heard.append(event)

    container = shop.run(Gateway)
    yield heard
    container.stop()
