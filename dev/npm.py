"""Installs what a folder's package-lock.json names, once for each state of that file."""

import fcntl
import os
import subprocess
import sys
from contextlib import contextmanager

from dev.programs import require_node
from dev.settings import ROOT
from nameko_reliable.testing.servers import CannotStart

# Swagger UI, which the gateway shows at /docs.
DOCS = ROOT / "gateway" / "docs"
FRONTEND = ROOT / "frontend"
QUIETLY = ("--loglevel=error", "--no-audit", "--no-fund")


@contextmanager
def alone(folder):
    """Waits for whoever else installs or builds there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def install(folder, what):
    """what: its name, for the person at the terminal. Packages' own install scripts aren't run."""
    with alone(folder):
        lock, installed = folder / "package-lock.json", folder / "node_modules" / ".installed"
        if installed.exists() and installed.read_text() == lock.read_text():
            return
        require_node()
        print(f"forage: installing {what} with npm", flush=True)
        # If this is cut short, the folder is no longer what it was for the lock before, either.
        installed.unlink(missing_ok=True)
        done = subprocess.run(
            # Not `npm ci`: it refuses a lock that lacks another platform's binaries, which differ in nothing but that.
            ["npm", "install", "--no-save", "--include=dev", "--ignore-scripts", *QUIETLY],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise CannotStart(f"npm could not install {what}: {(done.stderr or done.stdout).strip()}")
        installed.write_text(lock.read_text())


if __name__ == "__main__":
    try:
        install(FRONTEND, "the frontend")
    except CannotStart as reason:
        sys.exit(f"forage: {reason}")
