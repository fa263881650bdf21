"""With an invalid address nothing starts, and the password is not printed."""

import subprocess
import sys

import pytest

from contracts.types import SERVICES
from dev.settings import ROOT

pytestmark = pytest.mark.server

NAMEKO = [ROOT / ".venv/bin/nameko", "run", "--config", "config.yaml"]
COMMANDS = {
    "gateway": [*NAMEKO, "gateway"],
    "users": [*NAMEKO, "services.users"],
    "orders": [*NAMEKO, "services.orders"],
    "notifications": [*NAMEKO, "services.notifications"],
    "change_queues": [sys.executable, "-m", "ops.change_queues"],
    "seed": [sys.executable, "ops/seed.py"],
    "make run": [sys.executable, "-m", "dev.run"],
}
WRONG = ["amqp://shop:qx/zw@broker", "amqp://shop:qx#zw@broker", "http://shop:qxzw@broker", "shop:qxzw@broker:5672"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """{command: (output, exit code)}. All are started at the same time, with an invalid AMQP_URI."""
    processes = {
        name: subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                "AMQP_URI": WRONG[number % len(WRONG)],
                "LOCAL_DIR": str(tmp_path_factory.mktemp("local")),
                "PATH": "/usr/bin:/bin",
                "PYTHONWARNINGS": "ignore",
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number, (name, command) in enumerate(COMMANDS.items())
    }
    yield {name: (process.communicate(timeout=60)[0], process.returncode) for name, process in processes.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_invalid_broker_address_is_reported_without_the_password(ended, name):
    output, code = ended[name]

    assert code == 1
    [sentence] = [line for line in output.splitlines() if line.startswith("AMQP_URI")]
    assert "percent-encode" in sentence
    assert "Traceback" not in output
    assert not [part for part in ("qx", "zw", "shop:") if part in output]


def test_an_invalid_database_address_is_reported_without_the_password():
    uris = {f"{name.upper()}_DB_URI": f"postgresql+psycopg2://u:p@127.0.0.1:1/{name}" for name in SERVICES}

    done = subprocess.run(
        [sys.executable, "-m", "ops.migrate"],
        cwd=ROOT,
        env={**uris, "NOTIFICATIONS_DB_URI": "postgresql+psycopg2://shop:qx/zw@db/notifications_db"},
        text=True,
        capture_output=True,
    )

    [sentence] = done.stderr.splitlines()
    assert done.returncode == 1
    assert sentence.startswith("NOTIFICATIONS_DB_URI must be like postgresql+psycopg2://user:password@localhost")
    assert not [part for part in ("qx", "zw", "shop:") if part in done.stdout + done.stderr]
