"""`python -m dev.frontend`: builds the storefront, if its sources have changed since the last build."""

import hashlib
import shutil
import subprocess
import sys

from dev import npm
from dev.npm import FRONTEND
from nameko_reliable.testing.servers import CannotStart

BUILT_FROM = ".built-from"
# Files and folders that no build reads.
EXCLUDED = {"node_modules", "dist", "dist-new", "e2e", "nginx.conf", "screenshots", "test-results"}
DIST = FRONTEND / "dist"
VITE = FRONTEND / "node_modules" / "vite" / "bin" / "vite.js"


def hot_reload_command():
    return [shutil.which("node"), str(VITE)]


def build(folder):
    """Builds once if several copies of the shop start together. A build that is being served stays unchanged."""
    npm.install(folder, "the frontend")
    with npm.locked(folder):
        sources, dist, new = fingerprint(folder), folder / "dist", folder / "dist-new"
        if (dist / BUILT_FROM).exists() and (dist / BUILT_FROM).read_text() == sources:
            return
        print("forage: building the frontend", flush=True)
        run(folder, "node", VITE, "build", "--outDir", new, "--emptyOutDir")
        run(folder, "node", FRONTEND / "compress.js", new)
        (new / BUILT_FROM).write_text(sources)
        shutil.rmtree(dist, ignore_errors=True)
        new.rename(dist)


def fingerprint(folder):
    digest = hashlib.sha256()
    for path in sorted(path for top in folder.iterdir() if top.name not in EXCLUDED for path in files_of(top)):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def files_of(path):
    """The files below a path. Links without a target, like an editor's lock, are left out."""
    return [file for file in [path, *path.rglob("*")] if file.is_file()]


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise CannotStart(f"The frontend could not be built:\n{(done.stdout + done.stderr).strip()}")


if __name__ == "__main__":
    try:
        build(FRONTEND)
    except CannotStart as reason:
        sys.exit(f"forage: {reason}")
