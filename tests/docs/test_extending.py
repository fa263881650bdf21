"""docs/extending.md: applies its blocks to a copy of the source tree, and runs its commands and its tests there."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from contracts.types import SERVICES
from dev.settings import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
# (the file's path, the language, the text)
BLOCK = re.compile(r"(?:^`([^`\n]+)`\n\n)?^```(python|diff|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(PAGE)
WRITTEN = [path for path, language, _ in BLOCKS if language == "python"]
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "node_modules", "dist", "site")
# Quick tests that fail if the page omits a step.
CHECKS = ("test_events.py", "test_service_list.py", "test_services.py")

CONFTEST = """
from pathlib import Path

import pytest

from nameko_reliable.testing.servers import PostgresServer, RabbitMQ, RabbitMQServer


@pytest.fixture(scope="session")
def servers(local_folder, postgres):
    database = PostgresServer(postgres, local_folder)
    database.start()
    database.wait_until_ready()
    yield database, RabbitMQServer(RabbitMQ(Path({folder!r}), **{options}), local_folder)
    database.stop()
"""


@pytest.fixture(scope="module")
def tree(servers, databases, tmp_path_factory):
    """The copy, after all blocks are applied and all commands have run."""
    tree = tmp_path_factory.mktemp("extended") / "forage"
    # Without .venv: an installation from the copy would change this tree's environment.
    shutil.copytree(ROOT, tree, symlinks=True, ignore=LEFT_OUT)
    for name in ("frontend/node_modules", "gateway/docs/node_modules"):
        (tree / name).symlink_to(ROOT / name)
    uris = {service: databases.new(service) for service in (*SERVICES, "reviews")}
    environment = environment_of(tree) | {f"{service.upper()}_DB_URI": uri for service, uri in uris.items()}
    share_broker(tree, servers[1].rabbitmq)
    for path, language, text in BLOCKS:
        if language == "python":
            assert not (tree / path).exists(), path
            (tree / path).parent.mkdir(exist_ok=True)
            (tree / path).write_text(text)
        elif language == "diff":
            (tree / path).write_text(patched((tree / path).read_text(), text, path))
        else:
            for command in text.splitlines():
                # Without `make`, which would install packages.
                run(tree, environment, command.replace("make client", "python -m dev.client"))
    yield tree
    for uri in uris.values():
        databases.drop(uri)


def share_broker(tree, rabbitmq):
    """Let the copy's tests use this session's RabbitMQ, which takes long to start. They start their own PostgreSQL."""
    options = {name: getattr(rabbitmq, name) for name in ("port", "password", "management_port")}
    folder = str(rabbitmq.folder)
    (tree / "conftest.py").write_text(CONFTEST.format(folder=folder, options=options))


def environment_of(tree):
    return {
        **os.environ,
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(tree / "kit" / "src"),
    }


def patched(text, diff, path):
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        assert f"\n{text}".count(f"\n{old}") == 1, f"Not exactly once in {path}:\n{old}"
        text = f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]
    return text


def run(tree, environment, command):
    done = subprocess.run(["sh", "-c", command], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_the_tests_in_the_recipes_pass(tree):
    tests = [path for path in WRITTEN if Path(path).name.startswith("test_")]
    checks = [f"tests/contracts/{name}" for name in CHECKS]

    assert {Path(test).parent.name for test in tests} == {"products", "users", "notifications", "reviews"}
    run(tree, environment_of(tree), " ".join(["nameko", "test", "-q", *tests, *checks]))


def test_the_code_in_the_recipes_passes_ruff(tree):
    edited = [*(path for path, *_ in BLOCKS if path.endswith(".py")), "migrations"]

    run(tree, environment_of(tree), " ".join(["ruff", "check", *edited]))
    run(tree, environment_of(tree), " ".join(["ruff", "format", "--check", *edited]))
