"""`make test`: the Python tests in three parallel processes, Vitest after the first of them, then the browser tests.

    python -m dev.test                    all
    python -m dev.test tests/orders …     only these, in one process
    python -m dev.test frontend           Vitest and the browser tests
    python -m dev.test --coverage …       the same, with a report of the lines that no Python test reaches

Each process has its own servers. A Python test waits most of the time, so three processes keep two cores busy. The
browser tests run last and alone: their pages must answer as fast as for a person.
"""

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from subprocess import PIPE, STDOUT

from dev import npm
from dev.programs import require_programs
from dev.settings import ROOT, LocalSettings
from nameko_reliable.testing.servers import CannotStart

PROGRAMS = Path(sys.executable).parent
VITEST = ["npm", "run", "--silent", "test"]
# The project `outages` depends on the others, so they run first.
PLAYWRIGHT = ["npx", "playwright", "test", "--project=outages"]
# All parts take about the same time. The first part has Vitest and all folders that are not named here.
OTHER_PARTS = (
    ("kit/tests", "tests/contracts", "tests/infrastructure", "tests/users"),
    ("tests/gateway", "tests/operations", "tests/orders"),
)
# Run by `make test-docker` and `make test-upgrade`.
EXCLUDED = ("tests/docker", "tests/upgrade")
# Optional, since it doubles the CPU time of the tests.
COVERAGE = "--coverage"


def main(paths, is_measured):
    folder = tempfile.mkdtemp(prefix="forage-test-")
    try:
        # Before the processes start, since two installations at the same time would fail.
        require_programs(LocalSettings({"LOCAL_DIR": folder}, for_tests=True))
        npm.install(npm.DOCS, "the page of /docs")
        npm.install(npm.FRONTEND, "the frontend")
    except CannotStart as reason:
        # The folder stays, since the sentence may name a log in it.
        sys.exit(f"forage: {reason}")
    shutil.rmtree(folder)
    # A list runs all its members, also after a failure.
    if paths == ["frontend"]:
        sys.exit(any([run_in_node(VITEST), run_in_node(PLAYWRIGHT)]))
    if is_measured:
        coverage("erase")
    failed = run(paths, is_measured).returncode if paths else run_parts(is_measured)
    if is_measured:
        coverage("combine", "--quiet")
        coverage("report")
    if not paths:
        failed = any([failed, run_in_node(PLAYWRIGHT)])
    sys.exit(failed)


def run(paths, is_measured, **options):
    measured = [PROGRAMS / "coverage", "run"] if is_measured else []
    return subprocess.run([*measured, PROGRAMS / "nameko", "test", *paths], cwd=ROOT, **options)


def run_in_node(command):
    return subprocess.run(command, cwd=npm.FRONTEND).returncode


def run_parts(is_measured):
    """The first part's lines appear at once, those of each other part when all parts have ended."""
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(run, part, is_measured, stdout=PIPE, stderr=STDOUT, text=True) for part in OTHER_PARTS]
        failed = [run(first_part(), is_measured).returncode, run_in_node(VITEST)]
    for other in others:
        print(other.result().stdout)
        failed.append(other.result().returncode)
    return any(failed)


def first_part():
    elsewhere = (*chain(*OTHER_PARTS), *EXCLUDED)
    folders = [f"tests/{folder.name}" for folder in sorted((ROOT / "tests").iterdir()) if any(folder.glob("test_*.py"))]
    return [folder for folder in folders if folder not in elsewhere]


def coverage(*arguments):
    subprocess.run([PROGRAMS / "coverage", *arguments], cwd=ROOT)


if __name__ == "__main__":
    main([path for path in sys.argv[1:] if path != COVERAGE], COVERAGE in sys.argv)
