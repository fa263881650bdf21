"""The shop at half its load for a long time: no memory, connection, channel or file may be left behind.

Chosen by SCENARIOS=soak. SOAK_MINUTES: how long it takes, 20 by default.
"""

import os
import urllib.request
from collections import Counter
from statistics import median

import psutil

from benchmarks import load
from benchmarks.live import open_socket
from benchmarks.load import BenchmarkFailed
from benchmarks.orders import MIX_STATUSES, measure_mix, mixing
from benchmarks.report import PARTS
from benchmarks.shop import metrics_port, pss_bytes, scenario

SAMPLE_SECONDS = 60
# Opened and closed between two samples.
SOCKETS = 50
# What one process reports about its work: at rest little of it.
METRICS = ("forage_workers_busy", "forage_db_pool_in_use", "forage_websockets")
# By unit: growth up to this, or up to this share, is none. Values of other units are shown only.
TOLERATED = {"MB": 2, "": 2}
TOLERATED_SHARE = 0.03


def minutes():
    text = os.environ.get("SOAK_MINUTES") or "20"
    # Three are the least that has a first, a middle and a last third.
    if not (text.isascii() and text.isdecimal() and 3 <= int(text) <= 1440):
        raise BenchmarkFailed(f"SOAK_MINUTES must be a number from 3 to 1440; it is {text!r}.")
    return int(text)


@scenario("soak", is_default=False)
def soak(shop, report):
    """The mix of a shop at half the rate that it reaches. Each minute a sample, when all work is done."""
    report.title("The mix of a shop, as fast as it can")
    per_second = measure_mix(shop, report).per_second / 2
    print(f"\nSoak: {minutes()} minutes of the mix, {per_second:.0f} requests a second", flush=True)
    samples = []
    for minute in range(1, minutes() + 1):
        done = load.http(shop.port, mixing(shop), SAMPLE_SECONDS, MIX_STATUSES, per_second=per_second)
        if done.errors:
            raise BenchmarkFailed(f"In minute {minute} some answers were wrong: {dict(done.errors)}")
        for number in range(SOCKETS):
            open_socket(shop, number).close()
        shop.deliver_orders()
        shop.wait_until_settled()
        samples.append(sample(shop, done))
        memory = sum(value for (name, unit), value in samples[-1].items() if unit == "MB")
        p50 = load.percentile(done.latencies_ms, 50)
        report.note(f"minute {minute}: {done.count} requests, p50 {p50:.1f} ms, memory {memory:.0f} MB")
    shop.check_books()
    report.note("The books are right.")
    growing = print_thirds(report, samples)
    if growing:
        raise BenchmarkFailed(f"In {minutes()} minutes these grew steadily: {', '.join(growing)}.")


def sample(shop, done):
    """{(name, unit): value}"""
    found = {("p50 of a request", "ms"): load.percentile(done.latencies_ms, 50)}
    for part, pids in shop.process_trees().items():
        processes = [each for pid in pids for each in _tree(pid)]
        # The caches of PostgreSQL and RabbitMQ fill up, and the mail server keeps its mails.
        unit = "MB" if part in PARTS else "MB, not judged"
        memory = [pss_bytes(pid) for pid in pids]
        if None not in memory:
            found[f"memory (PSS), {part}", unit] = sum(memory) / 1e6
        if part in PARTS:
            found[f"open files, {part}", ""] = sum(process.num_fds() for process in processes)
            found[f"threads, {part}", ""] = sum(process.num_threads() for process in processes)
    for part, replicas in shop.replicas.items():
        for name, value in _metrics(replicas).items():
            found[f"{name}, {part}", ""] = value
    connections = "SELECT application_name, count(*) FROM pg_stat_activity WHERE application_name <> '' GROUP BY 1"
    for name, count in shop.servers["postgres"].execute(connections):
        found[f"connections to PostgreSQL, {name}", ""] = count
    for kind in ("connections", "channels", "consumers", "queues"):
        listed = shop.servers["rabbitmq"].control("--silent", f"list_{kind}", "--no-table-headers")
        found[f"{kind} of the broker", ""] = len(listed.splitlines())
    return found


def _tree(pid):
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _metrics(replicas):
    """{metric: the sum of its values}"""
    values = Counter()
    for replica in replicas:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port(replica)}/metrics", timeout=20) as answer:
            for line in answer.read().decode().splitlines():
                name = line.partition("{")[0]
                if name in METRICS:
                    values[name] += float(line.rpartition(" ")[2])
    return values


def print_thirds(report, samples):
    """Print the medians of the first and of the last third. Returns the names of what grows steadily."""
    growing = []
    print(f"\n{'Medians of thirds':46} {'first':>10} {'last':>10} {'ratio':>7}")
    for name, unit in samples[-1]:
        values = [each.get((name, unit), 0) for each in samples]
        first, middle, last = thirds(values)
        is_growing = unit in TOLERATED and grows(first, middle, last, TOLERATED[unit])
        growing += [name] if is_growing else []
        ratio = f"{last / first:7.2f}" if first else f"{'-':>7}"
        print(f"{name:46} {first:10.1f} {last:10.1f} {ratio}  {unit}{'  grows' if is_growing else ''}", flush=True)
        report.results.figures[f"soak: {name}, first third"] = {"value": first, "unit": unit}
        report.results.figures[f"soak: {name}, last third"] = {"value": last, "unit": unit}
    return growing


def thirds(values):
    """The medians of the first, the middle and the last third."""
    size = len(values) // 3
    return median(values[:size]), median(values[size:-size]), median(values[-size:])


def grows(first, middle, last, tolerated):
    """Whether it still grows at the end. What only fills up at first, such as a cache or a pool, does not."""
    return middle > first and last - middle > max(tolerated, TOLERATED_SHARE * middle)
