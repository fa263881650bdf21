"""Packages are installed once for each state of their lock file. An unsupported Node is refused."""

import json
import subprocess

import pytest

from dev import npm
from dev.programs import require_node
from nameko_reliable.testing.servers import CannotStart

pytestmark = pytest.mark.server

INSTALLING = "forage: installing mushrooms with npm\n"


@pytest.fixture
def folder(tmp_path):
    """A package with one development dependency, the folder beside it."""
    (tmp_path / "morel").mkdir()
    (tmp_path / "morel" / "package.json").write_text('{"name": "morel", "version": "1.0.0"}')
    folder = tmp_path / "mushrooms"
    folder.mkdir()
    (folder / "package.json").write_text(json.dumps({"devDependencies": {"morel": "file:../morel"}}))
    subprocess.run(["npm", "install", "--package-lock-only", "--silent"], cwd=folder, check=True)
    return folder


def test_packages_are_installed_once(folder, capsys):
    npm.install(folder, "mushrooms")
    npm.install(folder, "mushrooms")

    assert capsys.readouterr().out == INSTALLING


def test_a_failed_install_is_repeated_even_when_its_lock_is_restored(folder, capsys):
    lock, package = (folder / "package-lock.json").read_text(), (folder / "package.json").read_text()
    npm.install(folder, "mushrooms")
    (folder / "package-lock.json").write_text(f"{lock}\n")
    (folder / "package.json").write_text("{")
    with pytest.raises(CannotStart, match="npm could not install mushrooms: "):
        npm.install(folder, "mushrooms")

    (folder / "package-lock.json").write_text(lock)
    (folder / "package.json").write_text(package)
    npm.install(folder, "mushrooms")

    assert capsys.readouterr().out == 3 * INSTALLING


def test_development_packages_are_installed_in_production_too(folder, monkeypatch):
    monkeypatch.setenv("NODE_ENV", "production")

    npm.install(folder, "mushrooms")

    assert (folder / "node_modules" / "morel" / "package.json").exists()


@pytest.fixture
def set_node_version(tmp_path, monkeypatch):
    """`set_node_version(text)` makes the only node on the PATH print this version."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    (tmp_path / "npm").write_text("")

    def set_node_version(text):
        (tmp_path / "node").write_text(f"#!/bin/sh\necho '{text}'\n")
        for name in ("node", "npm"):
            (tmp_path / name).chmod(0o755)

    return set_node_version


@pytest.mark.parametrize("version", ["v20.19.0", "v20.20.2", "v22.12.0", "v24.1.0", "v100.0.0"])
def test_a_node_version_that_vite_supports_is_accepted(set_node_version, version):
    set_node_version(version)

    require_node()


@pytest.mark.parametrize("version", ["v18.20.8", "v20.18.3", "v21.7.3", "v22.11.0"])
def test_an_unsupported_node_version_is_refused(set_node_version, version):
    set_node_version(version)

    with pytest.raises(CannotStart, match=f"22.12 or later.* is required, and .* says {version}"):
        require_node()


def test_a_broken_node_is_refused(set_node_version):
    set_node_version("")

    with pytest.raises(CannotStart, match="is required, and `node --version` says nothing"):
        require_node()


def test_without_node_nothing_is_installed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CannotStart, match="must be installed first"):
        npm.install(folder, "mushrooms")
