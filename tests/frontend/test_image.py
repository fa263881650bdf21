"""frontend/Dockerfile: the configuration of nginx in the storefront's image."""

import re
import subprocess

import pytest

from dev.nginx import CONNECTIONS, FILES, WORKERS
from dev.settings import ROOT
from gateway.live import MAX_SOCKETS

pytestmark = pytest.mark.server


def test_nginx_has_connections_for_as_many_web_sockets_as_a_gateway_holds():
    (change,) = re.findall("sed -i '([^']*)'", (ROOT / "frontend" / "Dockerfile").read_text())
    # These lines are the same in the official image.
    original = (ROOT / "tests" / "docker" / "stand_ins" / "nginx.conf").read_text()

    changed = subprocess.run(["sed", change], input=original, capture_output=True, text=True, check=True).stdout

    changed_to = {name: int(number) for name, number in re.findall(r"(worker_\w+)\s+(\d+);", changed)}
    # The same numbers as in `make run`.
    assert changed_to == {"worker_processes": WORKERS, "worker_rlimit_nofile": FILES, "worker_connections": CONNECTIONS}
    # One connection to the browser, one to the gateway.
    assert changed_to["worker_processes"] * changed_to["worker_connections"] >= 2 * MAX_SOCKETS
    assert changed_to["worker_rlimit_nofile"] > changed_to["worker_connections"]


def test_the_image_sets_every_variable_of_its_configuration():
    read = set(re.findall(r"\$\{([A-Z_]+)\}", (ROOT / "frontend" / "nginx.conf").read_text()))

    # The image's entrypoint and trusted-proxies.envsh make these two.
    made = {"NGINX_LOCAL_RESOLVERS", "REAL_IP_FROM"}
    (defaults,) = re.findall(
        r"^ENV (.*?[^\\])$", (ROOT / "frontend" / "Dockerfile").read_text(), re.DOTALL | re.MULTILINE
    )
    assert read == made | {name for name in re.findall(r"(\w+)=", defaults) if not name.startswith("NGINX_")}
