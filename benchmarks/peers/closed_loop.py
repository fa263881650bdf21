"""Calls in a closed loop, timed: each caller makes its next call when its last one has returned."""

import time


def repeat(call, seconds):
    """Call it for that time. Returns {seconds, cpu_seconds, latencies_ms}; cpu_seconds: of this process."""
    latencies_ms, started_at, cpu_before = [], time.perf_counter(), time.process_time()
    while (called_at := time.perf_counter()) - started_at < seconds:
        call()
        latencies_ms.append((time.perf_counter() - called_at) * 1000)
    return {
        "seconds": time.perf_counter() - started_at,
        "cpu_seconds": time.process_time() - cpu_before,
        "latencies_ms": latencies_ms,
    }


def repeat_in_greenlets(call, seconds, at_once):
    """The same by several greenlets at once."""
    import eventlet

    started_at = time.perf_counter()
    callers = [eventlet.spawn(repeat, call, seconds) for _ in range(at_once)]
    latencies_ms = [latency for caller in callers for latency in caller.wait()["latencies_ms"]]
    return {"seconds": time.perf_counter() - started_at, "latencies_ms": latencies_ms}
