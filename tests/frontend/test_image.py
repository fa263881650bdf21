"""frontend/Dockerfile: nginx as the storefront's image runs it."""

import re
import subprocess

from dev.settings import ROOT
from gateway.live import MAX_SOCKETS


def test_nginx_has_connections_for_as_many_web_sockets_as_a_gateway():
    (change,) = re.findall("sed -i '([^']*)'", (ROOT / "frontend" / "Dockerfile").read_text())
    # As in the official image in these lines.
    original = (ROOT / "tests" / "docker" / "stand_ins" / "nginx.conf").read_text()

    changed = subprocess.run(["sed", change], input=original, capture_output=True, text=True, check=True).stdout

    given = {name: int(number) for name, number in re.findall(r"(worker_\w+)\s+(\d+);", changed)}
    # One connection to the browser, one to the gateway.
    assert given["worker_processes"] * given["worker_connections"] >= 2 * MAX_SOCKETS
    assert given["worker_rlimit_nofile"] > given["worker_connections"]
