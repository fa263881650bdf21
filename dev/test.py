"""`make test`: the Python tests, in three processes side by side, and Vitest after the first; then the browser's.

    python -m dev.test                    all
    python -m dev.test tests/orders …     these alone, in one process
    python -m dev.test frontend           Vitest, and the journeys in a browser
    python -m dev.test --coverage …       any of these, and which lines the Python tests never reach

Each process has servers of its own. Most of a Python test's time is waiting, so three keep two cores busy. The
browser's tests run alone: their pages must answer as fast as for a person.
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
from dev.settings import ROOT, Settings
from nameko_reliable.testing.servers import CannotStart

PROGRAMS = Path(sys.executable).parent
VITEST = ["npm", "run", "--silent", "test"]
# The outages come after the journeys, which they depend on.
JOURNEYS = ["npx", "playwright", "test", "--project=outages"]
# Each part takes about as long as the others. The first has all folders that neither of these names, and Vitest.
OTHER_PARTS = (
    ("kit/tests", "tests/contracts", "tests/infrastructure", "tests/users"),
    ("tests/gateway", "tests/operations", "tests/orders"),
)
# `make test-docker` and `make test-upgrade`.
APART = ("tests/docker", "tests/upgrade")
# Not always, as it takes as much CPU again as the tests.
COVERAGE = "--coverage"


def main(paths, is_measured):
    folder = tempfile.mkdtemp(prefix="forage-test-")
    try:
        # Here, since of two that install something at once one would fail.
        require_programs(Settings({"LOCAL_DIR": folder}, for_tests=True))
        npm.install(npm.DOCS, "the page of /docs")
        npm.install(npm.FRONTEND, "the frontend")
    except CannotStart as reason:
        # The folder stays: the sentence may name a log in it.
        sys.exit(f"forage: {reason}")
    shutil.rmtree(folder)
    # Lists: what comes later runs whatever became of what was before.
    if paths == ["frontend"]:
        sys.exit(any([run_in_node(VITEST), run_in_node(JOURNEYS)]))
    if is_measured:
        coverage("erase")
    failed = run(paths, is_measured).returncode if paths else run_parts(is_measured)
    if is_measured:
        coverage("combine", "--quiet")
        coverage("report")
    if not paths:
        failed = any([failed, run_in_node(JOURNEYS)])
    sys.exit(failed)


def run(paths, is_measured, **options):
    measured = [PROGRAMS / "coverage", "run"] if is_measured else []
    return subprocess.run([*measured, PROGRAMS / "nameko", "test", *paths], cwd=ROOT, **options)


def run_in_node(command):
    return subprocess.run(command, cwd=npm.FRONTEND).returncode


def run_parts(is_measured):
    """The first part's lines appear as they come, each other's when all have ended."""
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(run, part, is_measured, stdout=PIPE, stderr=STDOUT, text=True) for part in OTHER_PARTS]
        failed = [run(first_part(), is_measured).returncode, run_in_node(VITEST)]
    for other in others:
        print(other.result().stdout)
        failed.append(other.result().returncode)
    return any(failed)


def first_part():
    elsewhere = (*chain(*OTHER_PARTS), *APART)
    folders = [f"tests/{folder.name}" for folder in sorted((ROOT / "tests").iterdir()) if any(folder.glob("test_*.py"))]
    return [folder for folder in folders if folder not in elsewhere]


def coverage(*arguments):
    subprocess.run([PROGRAMS / "coverage", *arguments], cwd=ROOT)


if __name__ == "__main__":
    main([path for path in sys.argv[1:] if path != COVERAGE], COVERAGE in sys.argv)
