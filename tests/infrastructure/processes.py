"""Real `nameko run` processes, which tests can kill and count."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import count
from urllib.request import urlopen

import psutil

from contracts.types import SERVICES
from dev.settings import ROOT
from nameko_reliable.testing.servers import Server


class Processes:
    """root: the source tree to run, with its own .venv: this one, or that of another release."""

    def __init__(self, folder, config, root=ROOT):
        self.folder = folder
        self.config = config
        self.root = root
        self._started = []
        self._numbers = count(1)

    def start(self, *modules, constants=None, config="config.yaml", **environment):
        """Start a `nameko run` of modules like `services.orders`. Other keywords go to its environment.

        config: the path of its configuration.
        constants: {module: {name: value}}, which patched_nameko.py changes in the process.
        Returns at once. Wait for an effect of the process, for example for its queue's consumer.
        """
        nameko = [str(self.root / ".venv" / "bin" / "nameko")]
        if constants is not None:
            nameko = [sys.executable, "-m", "tests.infrastructure.patched_nameko", json.dumps(constants)]
        command = [*nameko, "run", "--config", str(config), *modules]
        environment = self.environment() | {name: str(value) for name, value in environment.items()}
        server = Server(f"{modules[0]}-{next(self._numbers)}", self.folder, command, environment, cwd=self.root)
        self._started.append(server)
        return server.start()

    def environment(self):
        environment = environment_of(self.config)
        if self.root != ROOT:
            # It would make the process import this tree's modules.
            environment.pop("PYTHONPATH", None)
        return environment

    def stop(self):
        for server in self._started:
            if server.process.poll() is None:
                server.send(signal.SIGTERM)
        for server in self._started:
            server.stop()


def end_leftovers(folder):
    """As `make run` does. In a process of its own, since psutil waits with functions that eventlet removes."""
    program = "import sys, pathlib; from dev.leftovers import end_leftovers; end_leftovers(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, folder], cwd=ROOT, check=True)


def environment_of(config):
    """The environment variables with which config.yaml has the values of `config`."""
    plain = {name: str(value) for name, value in config.items() if isinstance(value, (str, int, float))}
    databases = {f"{service.upper()}_DB_URI": config["DB_URIS"][service] for service in SERVICES}
    return {**os.environ, **plain, **databases}


def is_ready(port):
    """Whether the process with this METRICS_PORT is ready."""
    with suppress(OSError):
        return urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200


def is_alive(process):
    """Whether psutil's process is running. A zombie is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
