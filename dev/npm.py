"""Installs the packages of a folder's package-lock.json, once for each state of that file."""

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
def locked(folder):
    """Locks the folder. Waits for other processes that install or build there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def install(folder, what):
    """Install without running install scripts of packages. what: a name for the folder in messages."""
    with locked(folder):
        lock, installed = folder / "package-lock.json", folder / "node_modules" / ".installed"
        if installed.exists() and installed.read_text() == lock.read_text():
            return
        require_node()
        print(f"forage: installing {what} with npm", flush=True)
        # If the install is interrupted, the folder does not match the previous lock, either.
        installed.unlink(missing_ok=True)
        done = subprocess.run(
            # Not `npm ci`: it refuses a lock file that lacks the binaries of other platforms.
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
