"""The processes themselves: their start, and what they take when nothing happens."""

import time

from benchmarks.report import PARTS, SHOP_PARTS
from benchmarks.shop import pss_bytes, scenario

# For each second of a row of other scenarios: most timers run once a second or less often.
IDLE_SECONDS = 4


@scenario("start")
def start(shop, report):
    """Each process by itself, beside the others, from its command until /readyz answers 200."""
    print("\nStart", flush=True)
    for part in PARTS:
        seconds, cpu_seconds = shop.restart(part)
        report.figure(f"time until it serves, {part}", seconds, "s")
        report.figure(f"CPU until it serves, {part}", cpu_seconds, "s")


@scenario("idle")
def idle(shop, report):
    """Idle processes: the CPU of heartbeats, timers, and the queries of relays and polls; and their memory."""
    report.title("Idle, per second")

    seconds = IDLE_SECONDS * report.seconds

    def wait():
        time.sleep(seconds)
        return seconds

    row = report.count("no requests", seconds, wait)
    # CPU ms in a second are tenths of a percent of a core.
    report.figure("CPU, everything", sum(row.cpu_ms[part] for part in SHOP_PARTS) / 10, "% of a core")
    memory = {part: [pss_bytes(replica.process.pid) for replica in shop.replicas[part]] for part in PARTS}
    if any(None in each for each in memory.values()):
        report.note("This system has no PSS of a process.")
        return
    for part, each in memory.items():
        report.figure(f"memory (PSS), {part}", sum(each) / 1e6, "MB")
    report.figure("memory (PSS), all processes", sum(map(sum, memory.values())) / 1e6, "MB")
