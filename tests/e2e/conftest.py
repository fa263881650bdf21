import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest

from scripts.leftovers import environment_of
from scripts.settings import DATABASE_URIS, DEFAULT_PORTS, ROOT, read_env_file
from tests.infrastructure.waiting import wait_for

SECONDS_TO_COME_UP = 150  # with the mail catcher to be installed first
SECONDS_TO_END = 15
SOMEBODY_ELSES = {
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


class RunningShop:
    """One `make run`, as `python -m scripts.run` in a folder of its own. mode: `dev` is `make dev`."""

    def __init__(self, folder, *mode, **environment):
        self.folder = folder / "local"
        self.log = folder / "run.log"
        inherited = {name: value for name, value in os.environ.items() if name not in SOMEBODY_ELSES}
        free_ports = dict.fromkeys(DEFAULT_PORTS, "0")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.run", *mode],
                cwd=ROOT,
                env={
                    **inherited,
                    **free_ports,
                    "BCRYPT_ROUNDS": "4",
                    "RATE_LIMIT_SCALE": "100",
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
            assert "Ctrl-C ends it" in self.output(), f"make run said: {self.output()[-4000:]}"
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
        """All that it started and that is there still."""
        return [
            process
            for process in psutil.process_iter()
            if environment_of(process).get("FORAGE_COPY") == str(self.folder)
        ]

    def process_of(self, module):
        return next((process for process in self.processes() if module in process.cmdline()), None)

    def stop(self):
        """As `kill PID` does. Returns its exit code."""
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
    """A running shop that the tests share: they leave it as they would like to find it."""
    with running_shop(local_folder / "shop") as shop:
        yield shop


@pytest.fixture
def own_shop(local_folder):
    """One more, for a test that ends it."""
    with running_shop(local_folder / "own-shop") as shop:
        yield shop
