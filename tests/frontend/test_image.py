"""frontend/Dockerfile: nginx as the storefront's image runs it."""

import re
import subprocess

import pytest

from dev.nginx import CONNECTIONS, FILES, WORKERS
from dev.settings import ROOT
from gateway.live import MAX_SOCKETS

pytestmark = pytest.mark.server


def test_nginx_has_connections_for_as_many_web_sockets_as_a_gateway_holds():
    (change,) = re.findall("sed -i '([^']*)'", (ROOT / "frontend" / "Dockerfile").read_text())
    # As in the official image in these lines.
    original = (ROOT / "tests" / "docker" / "stand_ins" / "nginx.conf").read_text()

    changed = subprocess.run(["sed", change], input=original, capture_output=True, text=True, check=True).stdout

    given = {name: int(number) for name, number in re.findall(r"(worker_\w+)\s+(\d+);", changed)}
    # `make run` has as many.
    assert given == {"worker_processes": WORKERS, "worker_rlimit_nofile": FILES, "worker_connections": CONNECTIONS}
    # One connection to the browser, one to the gateway.
    assert given["worker_processes"] * given["worker_connections"] >= 2 * MAX_SOCKETS
    assert given["worker_rlimit_nofile"] > given["worker_connections"]


def test_the_image_sets_every_variable_of_its_configuration():
    asked = set(re.findall(r"\$\{([A-Z_]+)\}", (ROOT / "frontend" / "nginx.conf").read_text()))

    # The image's entrypoint and trusted-proxies.envsh make these two.
    made = {"NGINX_LOCAL_RESOLVERS", "REAL_IP_FROM"}
    (said,) = re.findall(r"^ENV (.*?[^\\])$", (ROOT / "frontend" / "Dockerfile").read_text(), re.DOTALL | re.MULTILINE)
    assert asked == made | {name for name in re.findall(r"(\w+)=", said) if not name.startswith("NGINX_")}
