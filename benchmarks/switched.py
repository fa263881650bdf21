"""`nameko`, whose traces go off and on: one process with them and without, by turns.

    python -m benchmarks.switched run --config config.yaml gateway

SIGUSR1 turns them off, and the next one on again. From SIGUSR2 on that happens by itself, ten times a second; at the
next one it prints `turns: [[off, on], …]`, the µs of CPU that a request took in each pair of turns.
"""

import json
import signal
import time

import eventlet

eventlet.monkey_patch()  # as Nameko's command does, which comes too late for what is imported here

from nameko.cli.main import main  # noqa: E402

from extensions.tracing import NO_SPAN, Tracer  # noqa: E402

TURN_SECONDS = 0.1

begun = 0
is_watching = False


def counted(begin):
    def counted_begin(*arguments, **trace):
        global begun
        begun += 1
        return begin(*arguments, **trace)

    return counted_begin


on, off = counted(Tracer.begin), counted(lambda *arguments, **trace: NO_SPAN)


def switch(*signalled):
    Tracer.begin = off if Tracer.begin is on else on


def watch(*signalled):
    global is_watching
    is_watching = not is_watching
    if is_watching:
        eventlet.spawn_n(take_turns)


def take_turns():
    pairs = []
    while is_watching:
        first = turn()
        switch()
        second = turn()
        # on, off, off, on: what drifts hits both alike.
        pairs.append((first, second) if len(pairs) % 2 else (second, first))
    print("turns:", json.dumps(pairs), flush=True)


def turn():
    before, started_at = begun, time.process_time()
    eventlet.sleep(TURN_SECONDS)
    return (time.process_time() - started_at) * 1e6 / max(1, begun - before)


Tracer.begin = on
signal.signal(signal.SIGUSR1, switch)
signal.signal(signal.SIGUSR2, watch)

if __name__ == "__main__":
    main()
