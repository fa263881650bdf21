"""Makes a virtual environment from lock files. Runs in old Pythons, too, to report that they are too old.

Without arguments it makes .venv with the kit. The arguments are a folder and lock files.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER, *LOCKS = sys.argv[1:] or [".venv", "requirements.txt", "requirements-dev.txt"]
VENV = ROOT / FOLDER


def main():
    if sys.version_info < (3, 11):
        sys.exit(
            "forage: Python 3.11 or later is required, and this is %d.%d. Choose another one: `make PYTHON=...`."
            % sys.version_info[:2]
        )
    print("forage: installing the Python packages into " + FOLDER, flush=True)
    if not (VENV / "bin" / "pip").exists():
        make_empty()
    locks = [word for lock in LOCKS for word in ("--requirement", str(ROOT / lock))]
    install("--require-hashes", *locks)
    if not sys.argv[1:]:
        # The locks contain its dependencies and setuptools, which builds it.
        install("--no-deps", "--no-build-isolation", "--editable", str(ROOT / "kit"))
    (VENV / "installed").touch()


def install(*arguments):
    command = [str(VENV / "bin" / "pip"), "install", "-qq", "--disable-pip-version-check"]
    if subprocess.run(command + list(arguments)).returncode:
        sys.exit("forage: the Python packages could not be installed; the lines above say why.")


def make_empty():
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode and "ensurepip" in done.stdout and os.geteuid() == 0 and shutil.which("apt-get"):
        # Debian has a separate package for this part of Python.
        subprocess.run(["apt-get", "-q", "update"], stdout=subprocess.DEVNULL)
        subprocess.run(["apt-get", "-q", "install", "--yes", "python3-venv"], stdout=subprocess.DEVNULL)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(
            "forage: `python3 -m venv` does not work here (on Debian: apt-get install python3-venv).\n" + done.stdout
        )


main()
