"""Contracts and models import neither a broker's client nor an event loop."""

import pkgutil
import subprocess
import sys

import pytest

import contracts
import services
from dev.settings import ROOT

pytestmark = pytest.mark.server

MACHINERY = {"amqp", "eventlet", "kombu", "prometheus_client", "psycogreen"}
KIT = ("messages", "errors", "tables", "sessions", "statements")


def modules_of(package):
    return [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


MODULES = [
    *(f"nameko_reliable.{name}" for name in KIT),
    *modules_of(contracts),
    *(name for name in modules_of(services) if name.endswith("_models")),
]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_data_imports_no_machinery(module):
    program = f"import sys, {module}; print(*sorted({MACHINERY} & sys.modules.keys()))"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
