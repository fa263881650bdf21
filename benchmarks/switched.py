"""The `nameko` command with tracing that is switched off and on, to compare both in one process.

    python -m benchmarks.switched run --config config.yaml gateway

SIGUSR1 switches tracing off, and the next SIGUSR1 on again. After a SIGUSR2 the process switches by itself, in turns of
TURN_SECONDS. At the next SIGUSR2 it prints `pairs: [[off, on], …]`, the µs of CPU for a request; each pair is the mean
of TURNS turns.
"""

import json
import signal
import time
from collections import Counter

import eventlet

eventlet.monkey_patch()  # Nameko's command does it too late for these imports

from nameko.cli.main import main  # noqa: E402

from nameko_reliable.telemetry.tracing import NO_SPAN, Tracer  # noqa: E402

TURN_SECONDS = 0.1
# Enough turns that spans are exported in some of them. A multiple of 4.
TURNS = 20

begun_spans = 0
is_watching = False


def counted(begin):
    def counted_begin(*arguments, **trace):
        global begun_spans
        begun_spans += 1
        return begin(*arguments, **trace)

    return counted_begin


on, off = counted(Tracer.entry_span), counted(lambda *arguments, **trace: NO_SPAN)


def switch(*signalled):
    Tracer.entry_span = off if Tracer.entry_span is on else on


def watch(*signalled):
    global is_watching
    is_watching = not is_watching
    if is_watching:
        eventlet.spawn_n(take_turns)


def take_turns():
    pairs = []
    while is_watching:
        seconds, requests = Counter(), Counter()
        for number in range(TURNS):
            # on, off, off, on, …: a drift affects both equally.
            if number % 2:
                switch()
            before, started_at = begun_spans, time.process_time()
            eventlet.sleep(TURN_SECONDS)
            seconds[Tracer.entry_span] += time.process_time() - started_at
            requests[Tracer.entry_span] += begun_spans - before
        pairs.append([seconds[way] * 1e6 / max(1, requests[way]) for way in (off, on)])
    # Without the last pair, which ran on after the load had ended.
    print("pairs:", json.dumps(pairs[:-1]), flush=True)


Tracer.entry_span = on
signal.signal(signal.SIGUSR1, switch)
signal.signal(signal.SIGUSR2, watch)

if __name__ == "__main__":
    main()
