"""`make test`: the Python tests, in two processes side by side, and Vitest after the first; then the browser's.

    python -m dev.test                    all
    python -m dev.test tests/orders …     these alone, in one process
    python -m dev.test frontend           Vitest, and the journeys in a browser
    python -m dev.test --coverage …       any of these, and which lines the Python tests never reach

Each process has servers of its own. Most of a Python test's time is waiting, so two take hardly longer than one; a
browser has the machine to itself.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dev import npm
from dev.programs import require_programs
from dev.settings import ROOT, Settings
from nameko_reliable.testing.servers import CannotStart

PROGRAMS = Path(sys.executable).parent
VITEST = ["npm", "run", "--silent", "test"]
# The outages come after the journeys, which they depend on.
JOURNEYS = ["npx", "playwright", "test", "--project=outages"]
# All other folders are the second process's, which takes about as long as these and Vitest.
FIRST = ("kit/tests", "tests/contracts", "tests/e2e", "tests/infrastructure", "tests/orders", "tests/users")
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
    failed = run(paths, is_measured) if paths else run_halves(is_measured)
    if is_measured:
        coverage("combine", "--quiet")
        coverage("report")
    if not paths:
        failed = any([failed, run_in_node(JOURNEYS)])
    sys.exit(failed)


def run(paths, is_measured):
    return subprocess.run(command(paths, is_measured), cwd=ROOT).returncode


def run_in_node(command):
    return subprocess.run(command, cwd=npm.FRONTEND).returncode


def run_halves(is_measured):
    """The first half's lines appear as they come, the second's when it has ended."""
    second = [str(folder) for folder in sorted((ROOT / "tests").iterdir()) if is_second(folder)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command(second, is_measured), cwd=ROOT, stdout=output, stderr=output)
        failed = any([run(FIRST, is_measured), run_in_node(VITEST), process.wait()])
        output.seek(0)
        print(output.read())
    return failed


def is_second(folder):
    return f"tests/{folder.name}" not in (*FIRST, *APART) and any(folder.glob("test_*.py"))


def command(paths, is_measured):
    measured = [PROGRAMS / "coverage", "run"] if is_measured else []
    return [*measured, PROGRAMS / "nameko", "test", *paths]


def coverage(*arguments):
    subprocess.run([PROGRAMS / "coverage", *arguments], cwd=ROOT)


if __name__ == "__main__":
    main([path for path in sys.argv[1:] if path != COVERAGE], COVERAGE in sys.argv)
