"""`make bench` computes correct numbers, and refuses a wrong argument in a sentence."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys

import eventlet
import pytest

from benchmarks import comparison, load, markdown, musts, profiling, soak
from benchmarks.load import BenchmarkFailed, LoadResult, percentile, request
from benchmarks.report import FLASK, SHOP_PARTS, Results, Row
from benchmarks.shop import chosen_scenarios
from dev.settings import ROOT


def bench(*scenarios, **environment):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *scenarios],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.server
@pytest.mark.parametrize(
    "scenarios, environment, sentence",
    (
        (["orders", "weddings"], {}, "There is no scenario weddings; there are "),
        (["idle"], {"BENCH_SECONDS": "0"}, "BENCH_SECONDS must be a number from 1 to 60; it is '0'."),
        (["soak"], {"SOAK_MINUTES": "2"}, "SOAK_MINUTES must be a number from 3 to 1440; it is '2'."),
        (["idle"], {"CHECK": "twice"}, "CHECK must be a factor of the musts, such as 2; it is 'twice'."),
        (["idle"], {"PROFILE": "orders"}, "PROFILE must be a scenario of the shop that runs (idle); it is 'orders'."),
        (["idle"], {"COMPARE": "missing.json"}, "COMPARE cannot be read: "),
        (["idle"], {"COMPARE": "frontend/package.json"}, "COMPARE must be a file that `make bench` wrote, and "),
    ),
)
def test_a_wrong_argument_is_refused_before_anything_starts(scenarios, environment, sentence):
    done = bench(*scenarios, **environment)

    assert done.returncode == 1
    assert done.stderr.startswith(f"forage: {sentence}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def files_of_the_repository():
    """All files, also those that are not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and os.path.lexists(ROOT / name)]


@pytest.mark.server
def test_the_shortest_bench_runs_in_a_fresh_clone(tmp_path):
    """Only the Python packages are installed before the test, since this takes minutes."""
    for name in files_of_the_repository():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name, follow_symlinks=False)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")

    bench = subprocess.run(
        ["make", "--assume-old=.venv/installed", "--assume-old=.venv-peers/installed", "bench", "SCENARIOS=idle"],
        cwd=tmp_path,
        env={**os.environ, "BENCH_SECONDS": "1", "LOCAL_DIR": str(tmp_path / "local")},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert bench.returncode == 0, bench.stdout + bench.stderr
    assert "CPU ms for each" in bench.stdout
    [row] = [line.split() for line in bench.stdout.splitlines() if line.startswith("no requests")]
    assert row[2] == "1.0"
    [path] = (tmp_path / "local" / "benchmarks").glob("*.json")
    assert f"The results are in {path}" in bench.stdout.splitlines()
    assert comparison.read(path).rate("idle: no requests") == pytest.approx(1)
    assert "| no requests | 1.0 |" in path.with_suffix(".md").read_text()


@pytest.mark.parametrize("percent, value", ((50, 50), (95, 95), (99, 99), (100, 100)))
def test_a_percentile_is_the_smallest_value_that_so_many_percent_do_not_exceed(percent, value):
    assert percentile(range(100, 0, -1), percent) == value


def test_every_percentile_of_a_single_value_is_that_value():
    assert percentile([7], 50) == percentile([7], 99) == 7


def test_a_row_shows_rate_latencies_errors_and_cpu_of_each_process():
    load = LoadResult()
    load.latencies_ms, load.seconds = [10.0, 30.0, 20.0, 40.0], 2.0
    load.errors[503] = 1
    spent = {**dict.fromkeys(SHOP_PARTS, 0.0), "orders": 0.02, "clients": 0.7}

    row = Row("orders", load, busy={"gateway": 0.25, "orders": 0.5}, cpu_seconds=spent, flask_ms=0.5)

    assert row.cpu_ms["orders"] == row.all_cpu_ms == 5
    assert " ".join(str(row).split()) == (
        f"orders 2.0 20.0 40.0 40.0 1 {' '.join('5.000' if part == 'orders' else '0.000' for part in SHOP_PARTS)} "
        "5.000 10.0 orders 50%, gateway 25% errors: {503: 1}"
    )
    assert json.loads(json.dumps(row.as_json()))["errors"] == {"503": 1}


def results(orders_ms=16.0, flask_ms=0.5, p50_ms=10.0, **figures):
    rows = {
        FLASK: {"per_second": 100.0, "cpu_ms": {"all": flask_ms}},
        "orders: 2 lines, 16 connections": {
            "per_second": 60.0,
            "p50_ms": p50_ms,
            "p99_ms": 20.0,
            "cpu_ms": {"postgres": 4.0, "all": orders_ms},
            "errors": {},
        },
        "plain_nameko: 2 lines, 16 connections": {"per_second": 30.0, "cpu_ms": {"all": 50.0}},
    }
    return Results(rows, {name: {"value": value, "unit": "MB"} for name, value in figures.items()})


def test_the_musts_are_computed_from_the_rows_that_a_run_has():
    measured = {must.work: must.measured(results()) for must in musts.MUSTS}

    assert {work: value for work, value in measured.items() if value is not None} == {
        "POST /orders, 2 lines, 16 connections": 32,
        "orders a second against plain Nameko's, 16 connections": 2,
    }


def test_a_must_is_missed_above_its_value_or_below_it_where_more_is_better():
    [most] = [must for must in musts.MUSTS if must.work == "GET /orders (10 orders)"]
    [least] = [must for must in musts.MUSTS if must.work == "kit: one key through the outbox"]

    assert [most.is_missed(value) for value in (10, 11)] == [False, True]
    assert [most.is_missed(value, 2) for value in (20, 21)] == [False, True]
    assert [least.is_missed(value) for value in (1500, 1499)] == [False, True]
    assert [least.is_missed(value, 2) for value in (750, 749)] == [False, True]


def test_the_check_names_the_musts_that_are_missed_by_more_than_the_factor():
    assert list(musts.faults(results(orders_ms=32), 2)) == []
    assert list(musts.faults(results(orders_ms=33), 2)) == [
        "POST /orders, 2 lines, 16 connections: 66.0 × Flask, and the must is 32."
    ]


def test_a_burst_with_a_refused_order_misses_its_must():
    [burst] = [must for must in musts.MUSTS if must.work.startswith("burst")]
    run = Results(
        {"orders: burst of 500, 64 at once": {"errors": {"503": 1}}},
        {"orders: last mail after the last answer of the burst": {"value": 0.1, "unit": "s"}},
    )

    assert burst.is_missed(burst.measured(run), 2)


def test_a_comparison_marks_changes_beyond_15_percent(capsys):
    comparison.print_changes(results(memory=100.0), results(orders_ms=20, p50_ms=11, memory=80.0))

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert (
        "orders: 2 lines, 16 connections 16.00 → 20.00 +25%! 60.00 → 60.00 +0% 10.00 → 11.00 +10% 20.00 → 20.00 +0%"
    ) in lines
    assert "memory 100.00 → 80.00 -20%!" in lines


def test_a_file_of_results_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_DIR", str(tmp_path))
    run = results(memory=100.0)

    path = comparison.save(run, seconds=5)

    read = comparison.read(path)
    assert (read.rows, read.figures) == (run.rows, run.figures)


@pytest.mark.parametrize(
    "text", ("", "[]", "{}", '{"rows": {"a": 1}, "figures": {}}', '{"rows": {}, "figures": {"a": {}}}')
)
def test_a_file_that_is_no_run_is_refused(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)

    with pytest.raises(BenchmarkFailed, match="COMPARE must be a file that `make bench` wrote"):
        comparison.read(path)


def test_a_profile_counts_the_innermost_frames_by_library_and_by_function():
    site, kit = "/venv/lib/python3.11/site-packages", f"{ROOT}/kit/src/nameko_reliable"
    stacks = profiling.parse(
        f"run ({site}/nameko/cli/run.py:9);Session.execute ({site}/sqlalchemy/orm/session.py:5) 30\n"
        f"run ({site}/nameko/cli/run.py:9);Session.execute ({site}/sqlalchemy/orm/session.py:7) 10\n"
        f"run ({site}/nameko/cli/run.py:9);Outbox.store ({kit}/outbox.py:141) 5\n"
        f"run ({site}/nameko/cli/run.py:9);Orders.create_order ({ROOT}/services/orders.py:70) 3\n"
        "dumps (/usr/lib/python3.11/json/__init__.py:1) 2\n"
        "Thread.run (/usr/lib/python3.11/threading.py:982);Condition.wait (/usr/lib/python3.11/threading.py:327) 500\n"
        f"Hub.run ({site}/eventlet/hubs/hub.py:310);Hub.do_poll ({site}/eventlet/hubs/epolls.py:31) 500\n"
    )

    assert profiling.by_library(stacks) == {"sqlalchemy": 40, "nameko_reliable": 5, "services": 3, "Python": 2}
    assert profiling.by_function(stacks)["sqlalchemy: Session.execute (session.py)"] == 40


def test_without_the_right_to_read_other_processes_a_profile_is_refused(tmp_path, monkeypatch):
    refusing = tmp_path / "py-spy"
    refusing.write_text("#!/bin/sh\necho 'Permission denied' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(profiling, "find_py_spy", lambda: str(refusing))

    with pytest.raises(
        BenchmarkFailed, match=r"^PROFILE needs the right to read other processes .*: Permission denied$"
    ):
        profiling.require()


def test_peers_import_nothing_of_the_shop_or_its_kit():
    peers = ROOT / "benchmarks" / "peers"
    own = {path.name for path in ROOT.iterdir() if path.is_dir()} | {"nameko_reliable"}

    imported = {
        name.partition(".")[0]
        for path in peers.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    assert {"closed_loop", "nameko", "flask", "faststream"} <= imported
    assert not imported & own


def test_the_tables_of_a_run_have_its_command_its_musts_and_its_rows(tmp_path):
    run = results(memory=100.0)
    machine = {"platform": "Linux", "cores": 2, "python": "3.11.7", "load_at_start": 0.12}

    path = markdown.save(
        tmp_path / "run.json", run, machine=machine, commit="abc", seconds=5, scenarios=["orders", "idle"]
    )

    lines = path.read_text().splitlines()
    assert (path.name, lines[0]) == (
        "run.md",
        '`BENCH_SECONDS=5 make bench SCENARIOS="orders idle"`, of the commit abc, on Linux with',
    )
    assert "| POST /orders, 2 lines, 16 connections | 32.0 | 32 | 20 | × Flask |  |" in lines
    assert "|  | per s | p50 ms | p95 ms | p99 ms | postgres | CPU ms | × Flask |" in lines
    assert "| 2 lines, 16 connections | 60.0 | 10.0 |  | 20.0 | 4.00 | 16.00 | 32.0 |" in lines


def test_a_long_scenario_runs_only_if_it_is_named():
    importlib.import_module("benchmarks.__main__")  # it imports all scenarios

    by_default = {each.name for each in chosen_scenarios([])}

    assert {"orders", "idle", "big"} <= by_default
    assert not {"growth", "soak"} & by_default
    assert {each.name for each in chosen_scenarios(["soak", "growth"])} == {"growth", "soak"}


@pytest.mark.parametrize(
    "samples, is_growing",
    (
        ([100, 100, 101, 100, 101, 102], False),
        # Caches fill up.
        ([60, 80, 98, 99, 100, 100], False),
        ([100, 110, 120, 130, 140, 150], True),
        # It came back.
        ([100, 130, 130, 130, 100, 100], False),
    ),
)
def test_a_soak_finds_what_grows_steadily(samples, is_growing):
    assert soak.grows(*soak.thirds(samples), tolerated=2) == is_growing


@pytest.fixture
def web_server():
    """(port, the connections that it has accepted) of a server that answers each request with 200."""
    accepted = []

    def answer(connection, address):
        accepted.append(address)
        while connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    listener = eventlet.listen(("127.0.0.1", 0))
    server = eventlet.spawn(eventlet.serve, listener, answer)
    yield listener.getsockname()[1], accepted
    server.kill()


@pytest.mark.parametrize("keep_alive, connections", ((True, 2), (False, 6)))
def test_each_client_keeps_its_connection_or_opens_one_for_each_request(web_server, keep_alive, connections):
    port, accepted = web_server
    get = request("GET", "/")

    done = load.http(port, [iter([get] * 3), iter([get] * 3)], keep_alive=keep_alive)

    assert (done.count, done.errors, len(accepted)) == (6, {}, connections)


def test_clients_together_send_at_most_so_many_requests_a_second(web_server):
    port, accepted = web_server
    get = request("GET", "/")

    done = load.http(port, [iter([get] * 3), iter([get] * 3)], per_second=20)

    # The last one begins 5 of 20 seconds after the first.
    assert done.count == 6
    assert done.seconds >= 0.25
    assert len(accepted) == 2


def test_a_request_has_the_length_of_its_body():
    assert request("POST", "/orders", {"name": "Ä"}, X_Request_ID="one") == (
        b"POST /orders HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: one\r\nContent-Type: application/json\r\n"
        b'Content-Length: 18\r\n\r\n{"name": "\\u00c4"}'
    )
