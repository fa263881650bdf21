"""Contracts and models import neither a broker's client nor an event loop."""

import subprocess
import sys

import pytest

from contracts.types import SERVICES
from dev.settings import ROOT

pytestmark = pytest.mark.server

MACHINERY = {"amqp", "eventlet", "kombu", "prometheus_client", "psycogreen"}
KIT = ("messages", "errors", "tables", "sessions", "statements")
MODULES = [
    *(f"nameko_reliable.{name}" for name in KIT),
    "contracts.types",
    *(f"contracts.{service}" for service in SERVICES),
    *(f"services.{service}_models" for service in SERVICES),
]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_data_imports_no_machinery(module):
    program = f"import sys, {module}; print(*sorted({MACHINERY} & sys.modules.keys()))"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
