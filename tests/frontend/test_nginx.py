"""How `make run` starts nginx: with which account, address, build and limits."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys

import psutil
import pytest

from dev.frontend import BUILT_FROM
from dev.nginx import Nginx
from dev.settings import ROOT
from nameko_reliable.testing.servers import CannotStart, account
from tests.infrastructure.processes import end_leftovers, is_alive

from .conftest import PAGE, SETTINGS
from .test_serving import get

pytestmark = pytest.mark.server

PREPARE_AND_CHECK = """
import json, pathlib, subprocess, sys
from dev.nginx import Nginx

folder, build, settings = sys.argv[1:]
nginx = Nginx(pathlib.Path(folder), json.loads(settings))
nginx.prepare(pathlib.Path(build))
subprocess.run([*nginx.command(), "-t"], check=True)
"""


@pytest.fixture
def nginx(local_folder, tmp_path):
    nginx = Nginx(local_folder / tmp_path.name, SETTINGS)
    yield nginx
    shutil.rmtree(nginx.folder)


@pytest.fixture
def build(tmp_path):
    """A build that only this test changes."""
    build = tmp_path / "dist"
    (build / "assets").mkdir(parents=True)
    (build / "index.html").write_text(PAGE)
    (build / "assets" / "index-0LD.js").write_text("")
    (build / BUILT_FROM).write_text("old sources")
    return build


def test_the_workers_run_as_the_account_of_postgresql(site):
    workers = psutil.Process(site.server.process.pid).children()

    assert {worker.username() for worker in workers} == {account() or getpass.getuser()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run workers as another account")
def test_the_workers_can_read_a_build_that_only_root_can_read(serve, closed_port, tmp_path, dist):
    tmp_path.chmod(0o700)
    (dist / "index.html").chmod(0o600)

    with serve(closed_port, folder=tmp_path / "nginx") as site:
        page = get(site, "/")

    assert page.text == PAGE
    elsewhere = (tmp_path / "nginx").resolve()
    assert not elsewhere.is_relative_to(tmp_path)
    shutil.rmtree(elsewhere)


def test_the_next_start_ends_workers_left_by_a_killed_nginx(serve, closed_port, local_folder):
    copy = local_folder / "copy"
    copy.mkdir()
    with serve(closed_port, folder=copy / "nginx") as site:
        workers = psutil.Process(site.server.process.pid).children()
        site.server.kill()

        end_leftovers(copy)

        assert not any(map(is_alive, workers))


def test_nginx_is_unreachable_from_other_machines(site):
    with socket.socket() as probe:
        # Another address of this machine.
        refused = probe.connect_ex(("127.0.0.2", site.port))

    assert refused


def test_a_build_is_copied_once(nginx, build):
    nginx.copy(build)
    (build / "index.html").write_text("a build of the same sources")

    nginx.copy(build)

    assert (nginx.folder / "html" / "index.html").read_text() == PAGE
    assert not (nginx.folder / "html" / BUILT_FROM).exists()


def test_a_new_build_replaces_the_last_one(nginx, build):
    nginx.copy(build)
    (build / "index.html").write_text("new")
    (build / "assets" / "index-0LD.js").rename(build / "assets" / "index-NEW.js")
    (build / BUILT_FROM).write_text("new sources")

    nginx.copy(build)

    assert (nginx.folder / "html" / "index.html").read_text() == "new"
    assert [path.name for path in (nginx.folder / "html" / "assets").iterdir()] == ["index-NEW.js"]


def test_a_configuration_that_nginx_refuses_is_reported_in_a_sentence(nginx, build):
    nginx.settings["FRONTEND_URL"] = "http://$shop"

    with pytest.raises(CannotStart, match=r"^nginx refuses the storefront's configuration: .*\"shop\" variable"):
        nginx.prepare(build)


def test_the_connections_fit_into_the_limit_of_open_files(nginx, build):
    with_few_files = ["sh", "-c", 'ulimit -n 300 && exec "$@"', "sh"]
    check = [sys.executable, "-c", PREPARE_AND_CHECK, nginx.folder, build, json.dumps(SETTINGS)]

    done = subprocess.run([*with_few_files, *check], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
    assert "worker_connections 150;" in (nginx.folder / "nginx.conf").read_text()
