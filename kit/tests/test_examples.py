"""The examples: one command starts both services, and an order passes through both."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from nameko.standalone.rpc import ClusterRpcProxy

from nameko_reliable.testing.servers import Server
from nameko_reliable.testing.waiting import wait_for

pytestmark = pytest.mark.server

KIT = Path(__file__).resolve().parent.parent
NAMEKO = Path(sys.executable).with_name("nameko")


@pytest.fixture
def examples(tmp_path):
    """`run.py`, after it has printed that the services are open."""
    run = Server("examples", tmp_path, [sys.executable, KIT / "examples" / "run.py"])
    run.is_ready = lambda: "are open" in run.output()
    run.start().wait_until_ready()
    yield run
    assert run.stop() == 0


def test_an_order_is_baked_and_served(examples):
    [uri] = re.findall(r"--broker (\S+)", examples.output())
    shell = [NAMEKO, "shell", "--broker", uri]

    order = subprocess.run(shell, input='n.rpc.cafe.order("Torte")\n', capture_output=True, text=True, timeout=60)

    assert "1" in order.stdout, order.stderr
    with ClusterRpcProxy({"AMQP_URI": uri}, timeout=30) as rpc:
        wait_for(lambda: rpc.cafe.find_ticket(1) == {"cake": "Torte", "price": "4.20", "state": "served"})
