"""import-linter reports forbidden imports, in a copy of the code that has one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dev.settings import ROOT

pytestmark = pytest.mark.server

COPIED = ["pyproject.toml", "contracts", "services", "gateway", "kit/src", "ops", "dev"]
ONE_WAY = "Imports go one way"
OWN = "A service imports no other service"
CONTRACTS = "The contracts of a service import those of no other"
FREE = "Contracts and models import no messaging or metrics library"


@pytest.fixture
def lint(tmp_path):
    """`lint({path: line to add})`: the exit code, and the result of each contract."""
    for name in COPIED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)

    def lint(added):
        for path, line in added.items():
            with open(tmp_path / path, "a") as file:
                file.write(f"{line}\n")
        done = subprocess.run(
            [Path(sys.executable).with_name("lint-imports"), "--no-logo"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "kit" / "src"), "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    return lint


@pytest.mark.parametrize(
    ("contract", "path", "line"),
    [
        (ONE_WAY, "contracts/orders.py", "import services.orders"),
        (ONE_WAY, "gateway/app.py", "import services.orders"),
        (ONE_WAY, "gateway/app.py", "import dev.npm"),
        (ONE_WAY, "services/orders.py", "import ops.migrate"),
        (ONE_WAY, "ops/migrate.py", "import dev.settings"),
        (ONE_WAY, "kit/src/nameko_reliable/rpc.py", "import contracts.orders"),
        (OWN, "services/users.py", "import services.orders"),
        (OWN, "services/users.py", "import services.orders_models"),
        (OWN, "services/orders_models.py", "import services.products_search"),
        (OWN, "services/orders.py", "from services.users_passwords import Passwords"),
        (OWN, "services/base.py", "import services.orders_models"),
        (OWN, "services/reading.py", "import services.orders_models"),
        (CONTRACTS, "contracts/orders.py", "import contracts.products"),
        (CONTRACTS, "contracts/types.py", "from contracts.users import UserView"),
        (FREE, "contracts/orders.py", "import kombu"),
        (FREE, "services/orders_models.py", "from prometheus_client import Gauge"),
        (FREE, "services/orders_models.py", "from nameko_reliable.database import Database"),
    ],
)
def test_an_import_that_breaks_a_contract_is_reported(lint, contract, path, line):
    code, said = lint({path: line})

    assert code == 1
    [verdict] = [line for line in said.splitlines() if line.startswith(contract) and line.endswith(("KEPT", "BROKEN"))]
    assert verdict.endswith("BROKEN")


def test_modules_named_after_a_new_service_belong_to_it(lint):
    code, said = lint(
        {
            "services/gifts.py": "import services.gifts_models",
            "services/gifts_models.py": "import eventlet",
            "services/orders.py": "import services.gifts_models",
        }
    )

    assert code == 1
    assert "services.orders is not allowed to import services.gifts_models" in said
    assert "services.gifts_models is not allowed to import eventlet" in said
    assert "services.gifts is not allowed" not in said
