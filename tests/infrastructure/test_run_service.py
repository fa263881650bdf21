"""`make orders`: one service with the settings of `make infrastructure`."""

import os
import re
import signal
import subprocess
import sys

import pytest

from contracts.types import SERVICES
from dev.leftovers import claim, processes_of
from dev.settings import ROOT, LocalSettings
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.processes import end_leftovers, environment_of

pytestmark = pytest.mark.server


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    end_leftovers(tmp_path)


@pytest.fixture
def infrastructure(folder, config):
    """The env file and the lock of a `make infrastructure` that uses this test's broker and databases."""
    LocalSettings({**environment_of(config), "LOCAL_DIR": str(folder)}).write_env_file()
    with claim(folder):
        yield


def start(name, folder, **environment):
    """The process, without this process's environment."""
    plain = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "dev.run_service", name],
        cwd=ROOT,
        env={**plain, "LOCAL_DIR": str(folder), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A session like a terminal's, which sends Ctrl-C to all its processes.
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and so would all processes below it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def refusal(name, folder):
    process = start(name, folder)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    return output


@pytest.mark.usefixtures("infrastructure")
def test_a_service_runs_with_the_settings_of_the_infrastructure_until_ctrl_c(folder, broker, rpc):
    process = start("orders", folder, LOG_LEVEL="DEBUG")
    wait_for(lambda: broker.consumers("rpc-orders"), seconds=30)

    assert rpc.orders.list_orders(user_id=1)["total"] == 0
    assert re.fullmatch(
        r"forage: orders is running already, as process \d+: end that first\.\n", refusal("orders", folder)
    )

    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert " DEBUG " in output
    assert "Traceback" not in output


@pytest.mark.usefixtures("infrastructure")
def test_a_service_starts_again_when_its_code_changes(folder, broker, newer_code):
    process = start("orders", folder)
    wait_for(lambda: broker.consumers("rpc-orders"), seconds=30)
    [first] = processes_of(folder, "services.orders")

    newer_code()

    wait_for(lambda: {*processes_of(folder, "services.orders")} - {first}, seconds=30)
    wait_for(lambda: broker.consumers("rpc-orders"), seconds=30)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 0


@pytest.fixture
def newer_code():
    """`newer_code()` gives a file of orders the current time, as saving it would."""
    path = ROOT / "services" / "orders.py"
    times = path.stat()
    yield lambda: os.utime(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_service_without_its_infrastructure_ends_with_a_sentence(folder, closed_port):
    nothing = refusal("orders", folder)
    with claim(folder):
        not_yet = refusal("orders", folder)
        LocalSettings({"LOCAL_DIR": str(folder), "AMQP_URI": f"amqp://127.0.0.1:{closed_port}"}).write_env_file()
        no_broker = refusal("orders", folder)

    assert (
        nothing == "forage: The infrastructure is not running: run `make infrastructure` in another terminal first.\n"
    )
    assert not_yet == "forage: The infrastructure is not up yet: wait until it says that it is.\n"
    assert "its broker has ended" in no_broker


def test_an_unknown_service_is_refused(folder):
    assert refusal("mushrooms", folder).startswith("forage: There is no service mushrooms: take one of users, ")


def test_make_has_a_target_for_every_service_and_the_gateway():
    processes = (*SERVICES, "gateway")

    output = subprocess.run(["make", "--dry-run", *processes], cwd=ROOT, capture_output=True, text=True, check=True)

    assert [line.split()[-1] for line in output.stdout.splitlines() if "dev.run_service" in line] == list(processes)
