"""Installs what a folder's package-lock.json names, once for each state of that file."""

import subprocess

from scripts.settings import ROOT, CannotStart

# Swagger UI, which the gateway shows at /docs.
DOCS = ROOT / "gateway" / "docs"


def install(folder, what):
    """what: its name, for the person at the terminal. Packages' own install scripts aren't run."""
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".installed"
    if installed.exists() and installed.read_text() == lock.read_text():
        return
    print(f"forage: installing {what} with npm", flush=True)
    done = subprocess.run(
        ["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise CannotStart(f"npm could not install {what}: {(done.stderr or done.stdout).strip()}")
    installed.write_text(lock.read_text())
