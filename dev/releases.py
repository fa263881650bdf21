"""Unpacks the source tree of another release for `make test-upgrade`, with a virtual environment from its lock file."""

import subprocess
import sys

from dev import npm
from dev.settings import ROOT
from nameko_reliable.testing.servers import CannotStart


def unpacked_release(name, folder):
    """The release's source tree, in which `.venv/bin/nameko run` works. Raises CannotStart.

    name: a tag, or another name of a commit. folder: where trees are kept for later runs.
    """
    commit = commit_of(name)
    tree = folder / commit
    installed = tree / ".venv" / "installed"
    tree.mkdir(parents=True, exist_ok=True)
    with npm.locked(folder):
        if not installed.exists():
            print(f"forage: unpacking {name} and installing its Python packages", flush=True)
            archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
            make_environment(tree)
            installed.touch()
    # A gateway reads the files of the page when it starts.
    npm.install(tree / "gateway" / "docs", f"the page of /docs of {name}")
    return tree


def commit_of(name):
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        # git prints nothing about an unknown name, but it prints why it can't read the repository.
        reason = found.stderr.strip() or f"This clone has no {name}"
        raise CannotStart(f"{reason}: fetch it with `git fetch --tags origin`, or choose another commit, FROM=….")
    return found.stdout.strip()


def make_environment(tree):
    """Installs like the Dockerfile. 0.1.0 has no kit."""
    python = tree / ".venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", "--clear", tree / ".venv"],
        [*pip, "--require-hashes", "--requirement", tree / "requirements.txt"],
    ]
    if (tree / "kit").exists():
        commands.append([*pip, "--no-deps", "--no-build-isolation", tree / "kit"])
    for command in commands:
        if subprocess.run(command).returncode:
            raise CannotStart(f"The Python packages of {tree} could not be installed; the lines above say why.")
