"""`make run` builds the storefront only when its sources have changed."""

import shutil
import subprocess
import sys

import pytest

from dev import npm
from dev.settings import ROOT

pytestmark = pytest.mark.server

BUILD = "import sys, pathlib; from dev.frontend import build; build(pathlib.Path(sys.argv[1]))"
BUILDING = "forage: building the frontend\n"


@pytest.fixture
def folder(tmp_path):
    """A small frontend with the packages and the settings of the storefront."""
    npm.install(npm.FRONTEND, "the frontend")
    for name in ("package.json", "package-lock.json", "vite.config.ts"):
        shutil.copy(npm.FRONTEND / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(npm.FRONTEND / "node_modules")
    (tmp_path / "src").mkdir()
    (tmp_path / "index.html").write_text('<!doctype html><script type="module" src="/src/main.ts"></script>')
    (tmp_path / "src" / "main.ts").write_text("document.title = 'chanterelle'")
    return tmp_path


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, folder], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def build(folder):
    """The standard output and the standard error of a build."""
    return start(folder).communicate(timeout=60)


def scripts_of(folder):
    return "".join(path.read_text() for path in (folder / "dist" / "assets").glob("*.js"))


def test_a_build_has_compressed_copies(folder):
    (folder / "src" / "main.ts").write_text(f"document.title = '{'chanterelle ' * 100}'")

    assert build(folder)[0] == BUILDING

    [script] = (folder / "dist" / "assets").glob("*.js")
    assert script.with_name(f"{script.name}.gz").stat().st_size < script.stat().st_size / 2


def test_unchanged_sources_are_not_built_again(folder):
    build(folder)

    assert build(folder)[0] == ""


def test_files_that_no_build_reads_cause_no_build(folder):
    build(folder)
    (folder / "screenshots").mkdir()
    (folder / "screenshots" / "cart.png").write_text("of another run")
    (folder / ".#index.html").symlink_to("the-lock-of-an-editor")

    assert build(folder) == ("", "")


@pytest.mark.parametrize("source", ["src/main.ts", "index.html", "public/robots.txt"])
def test_a_changed_source_causes_a_build(folder, source):
    build(folder)
    (folder / source).parent.mkdir(exist_ok=True)
    with open(folder / source, "a") as file:
        file.write("\n")

    assert build(folder)[0] == BUILDING


def test_a_failed_build_reports_why_and_keeps_the_last_one(folder):
    build(folder)
    (folder / "src" / "main.ts").write_text("document.title = (")

    _, reason = build(folder)

    assert "The frontend could not be built" in reason and "src/main.ts" in reason
    assert "chanterelle" in scripts_of(folder)


def test_copies_that_start_at_the_same_time_build_once(folder):
    printed = [process.communicate(timeout=60)[0] for process in [start(folder) for _ in range(3)]]

    assert sorted(printed) == ["", "", BUILDING]
    assert "chanterelle" in scripts_of(folder)
