"""Real `nameko run` processes, to be killed and counted."""

import json
import os
import signal
import sys
from itertools import count

import psutil

from contracts.types import SERVICES
from dev.settings import ROOT
from nameko_reliable.testing.servers import Server


class Processes:
    def __init__(self, folder, config):
        self.folder = folder
        self.config = config
        self._started = []
        self._numbers = count(1)

    def start(self, *modules, constants=None, config="config.yaml", **environment):
        """One more `nameko run` of `services.orders` or whatever modules; keywords go to its environment.

        config: the path of its configuration.
        constants: {module: {name: value}}, to be changed in the process, as in patched_nameko.py.
        It returns at once; wait for what the process is to do, for example for its queue's consumer.
        """
        nameko = [str(ROOT / ".venv" / "bin" / "nameko")]
        if constants is not None:
            nameko = [sys.executable, "-m", "tests.infrastructure.patched_nameko", json.dumps(constants)]
        command = [*nameko, "run", "--config", str(config), *modules]
        environment = environment_of(self.config) | {name: str(value) for name, value in environment.items()}
        server = Server(f"{modules[0]}-{next(self._numbers)}", self.folder, command, environment, cwd=ROOT)
        self._started.append(server)
        return server.start()

    def stop(self):
        for server in self._started:
            if server.process.poll() is None:
                server.send(signal.SIGTERM)
        for server in self._started:
            server.stop()


def environment_of(config):
    """The environment in which config.yaml has the values of `config`."""
    plain = {name: str(value) for name, value in config.items() if isinstance(value, (str, int, float))}
    databases = {f"{service.upper()}_DB_URI": config["DB_URIS"][service] for service in SERVICES}
    return {**os.environ, **plain, **databases}


def is_alive(process):
    """psutil's process. One that has ended, and that nobody has asked how, is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
