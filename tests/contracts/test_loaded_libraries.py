"""What a process loads: each library takes memory, and time at the start."""

import os
import subprocess
import sys

import pytest

from contracts.types import SERVICES
from dev.settings import ROOT

pytestmark = pytest.mark.server

# Loaded where they are switched on, and zxcvbn only while a secret is checked that may be guessable.
ELSEWHERE = {"alembic", "dns", "opentelemetry", "redis", "zxcvbn"}


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("gateway", {"limits", "sqlalchemy"}),
        *((f"services.{service}", {"flask", "oauthlib", "requests"}) for service in SERVICES),
    ],
)
def test_a_process_loads_only_libraries_that_it_uses(module, unused):
    script = f"import eventlet; eventlet.monkey_patch(); import sys, {module}; print(*sys.modules)"
    environment = {**os.environ, "EVENTLET_NO_GREENDNS": "yes"}

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & (ELSEWHERE | unused)
