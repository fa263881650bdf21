import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from itertools import count

import pytest
import requests

from dev.leftovers import processes_of
from dev.settings import DATABASE_URIS, DEFAULT_PORTS, ROOT, read_env_file
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.feed import Feed

SECONDS_TO_COME_UP = 150  # includes the installation of the mail catcher
SECONDS_TO_END = 30
SETTINGS_OF_OTHER_SHOPS = {
    "AMQP_URI",
    "SMTP_HOST",
    "GOOGLE_CLIENT_ID",
    "FRONTEND_URL",
    "TRUSTED_PROXIES",
    "JWT_SECRET",
    "LOG_FORMAT",
    "DEMO_PASSWORD",
    *DATABASE_URIS,
}
numbers = count(1)


class RunningShop:
    """A `make run` in its own folder, started as `python -m dev.run`. mode: `dev` for `make dev`."""

    def __init__(self, folder, *mode, **environment):
        self.folder = folder / "local"
        self.log = folder / "run.log"
        inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS_OF_OTHER_SHOPS}
        free_ports = dict.fromkeys(DEFAULT_PORTS, "0")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dev.run", *mode],
                cwd=ROOT,
                env={
                    **inherited,
                    **free_ports,
                    "BCRYPT_ROUNDS": "4",
                    "RATE_LIMIT_SCALE": "100",
                    # The shop must ignore it: its processes can't share a port.
                    "METRICS_PORT": "9100",
                    "LOCAL_DIR": str(self.folder),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_up(self):
        def up():
            assert self.process.poll() is None, f"make run ended: {self.output()[-4000:]}"
            assert "Ctrl-C ends it" in self.output(), f"make run printed: {self.output()[-4000:]}"
            return True

        wait_for(up, SECONDS_TO_COME_UP, pause_seconds=0.2)
        self.settings = read_env_file(self.folder / "env")
        self.storefront = self.settings["FRONTEND_URL"]
        self.gateway = f"http://127.0.0.1:{self.settings['GATEWAY_PORT']}"
        self.websocket = f"ws://127.0.0.1:{self.settings['GATEWAY_PORT']}/ws/notifications"
        self.mails = f"http://127.0.0.1:{self.settings['MAIL_WEB_PORT']}/api/email"

    def output(self):
        return self.log.read_text(errors="replace")

    def processes(self):
        """All processes that it started and that still run."""
        return processes_of(self.folder)

    def process_of(self, module):
        return next(iter(processes_of(self.folder, module)), None)

    def stop(self):
        """Stop it like `kill PID`. Returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS_TO_END)


@contextmanager
def running_shop(folder, *mode):
    folder.mkdir(mode=0o711)
    shop = RunningShop(folder, *mode)
    try:
        shop.wait_until_up()
        yield shop
    finally:
        shop.stop()


@pytest.fixture(scope="package")
def shop(local_folder):
    """A running shop that the tests share. They leave it working."""
    with running_shop(local_folder / "shop") as shop:
        yield shop


@pytest.fixture
def own_shop(local_folder):
    """Another shop, for a test that stops it."""
    with running_shop(local_folder / "own-shop") as shop:
        yield shop


class Person:
    """A logged-in user."""

    def __init__(self, shop, email, password):
        self.shop = shop
        self.email = email
        answer = requests.post(f"{shop.gateway}/users/login", json={"email": email, "password": password}, timeout=10)
        assert answer.status_code == 200, answer.text
        self.token = answer.json()["access_token"]

    def request(self, method, path, **options):
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        return requests.request(method, self.shop.gateway + path, headers=headers, timeout=10, **options)

    def order(self, product, quantity=1):
        items = [{"product_id": product["id"], "quantity": quantity, "unit_price": product["price"]}]
        headers = {"Idempotency-Key": f"order-{next(numbers)}"}
        return self.request("POST", "/orders", json={"items": items}, headers=headers)

    def listen(self):
        """A Feed that is authenticated as this user."""
        feed = Feed(self.shop.websocket)
        feed.send(type="authenticate", token=self.token)
        feed.receive_until("authenticated")
        return closing(feed)

    def mails(self, event):
        """The mails to this user about this event."""
        return [
            mail
            for mail in requests.get(self.shop.mails, timeout=10).json()
            if mail["to"][0]["address"] == self.email and mail["headers"]["x-forage-event"] == event
        ]


@pytest.fixture
def customer(shop):
    email = f"customer-{next(numbers)}@forage.example"
    account = {"email": email, "username": email.partition("@")[0], "password": "hen of the woods"}
    assert requests.post(f"{shop.gateway}/users/register", json=account, timeout=10).status_code == 201
    return Person(shop, email, account["password"])


@pytest.fixture
def admin(shop):
    return Person(shop, "admin@forage.example", "chanterelle")


@pytest.fixture
def product(shop):
    page = requests.get(f"{shop.gateway}/products", params={"limit": 100}, timeout=10).json()
    return next(item for item in page["items"] if item["stock_quantity"] >= 10)
