"""`make bench` computes correct numbers, and refuses an unknown scenario in a sentence."""

import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.load import LoadResult, percentile, request
from benchmarks.report import REPORTED_PARTS, Row
from dev.settings import ROOT

pytestmark = pytest.mark.server


def test_an_unknown_scenario_is_refused_before_anything_starts():
    bench = subprocess.run(
        [sys.executable, "-m", "benchmarks", "orders", "weddings"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )

    assert bench.returncode == 1
    assert bench.stderr.startswith("forage: There is no scenario weddings; there are ")
    assert bench.stderr.count("\n") == 1
    assert bench.stdout == ""


def files_of_the_repository():
    """All files, also those that are not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and os.path.lexists(ROOT / name)]


def test_the_shortest_bench_runs_in_a_fresh_clone(tmp_path):
    """Only the Python packages are installed before the test, since this takes minutes."""
    for name in files_of_the_repository():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name, follow_symlinks=False)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")

    bench = subprocess.run(
        ["make", "--assume-old=.venv/installed", "bench", "SCENARIOS=idle"],
        cwd=tmp_path,
        env={**os.environ, "BENCH_SECONDS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert bench.returncode == 0, bench.stdout + bench.stderr
    assert "CPU ms for each" in bench.stdout
    [row] = [line.split() for line in bench.stdout.splitlines() if line.startswith("no requests")]
    assert row[2] == "1.0"


@pytest.mark.parametrize("percent, value", ((50, 50), (95, 95), (99, 99), (100, 100)))
def test_a_percentile_is_the_smallest_value_that_so_many_percent_do_not_exceed(percent, value):
    assert percentile(range(100, 0, -1), percent) == value


def test_every_percentile_of_a_single_value_is_that_value():
    assert percentile([7], 50) == percentile([7], 99) == 7


def test_a_row_shows_rate_latencies_errors_and_cpu_of_each_process():
    load = LoadResult()
    load.latencies_ms, load.seconds = [10.0, 30.0, 20.0, 40.0], 2.0
    load.errors[503] = 1
    spent = {**dict.fromkeys(REPORTED_PARTS, 0.0), "orders": 0.02}

    row = Row("orders", load, busy={"gateway": 0.25, "orders": 0.5}, cpu_seconds=spent)

    assert row.cpu_ms["orders"] == 5
    assert " ".join(str(row).split()) == (
        f"orders 2.0 20.0 40.0 40.0 1 {' '.join('5.000' if part == 'orders' else '0.000' for part in REPORTED_PARTS)} "
        "5.000 orders 50%, gateway 25% errors: {503: 1}"
    )


def test_a_request_has_the_length_of_its_body():
    assert request("POST", "/orders", {"name": "Ä"}, X_Request_ID="one") == (
        b"POST /orders HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: one\r\nContent-Type: application/json\r\n"
        b'Content-Length: 18\r\n\r\n{"name": "\\u00c4"}'
    )
