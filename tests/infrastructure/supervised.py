"""Runs a supervisor with some commands: python -m tests.infrastructure.supervised '{"name": ["a", "command"], …}'.

SIGUSR1 sets this process's clock back by an hour. SIGUSR2 breaks the environment of the command named "broken", so it
can't be started. The next SIGUSR2 repairs it.
"""

import asyncio
import json
import os
import signal
import sys
import time

from dev.supervisor import Supervisor


async def main(commands):
    stop_requested, broken = asyncio.Event(), dict(os.environ)
    supervisor = Supervisor()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop_requested.set)
    loop.add_signal_handler(signal.SIGUSR1, set_clock_back)
    loop.add_signal_handler(signal.SIGUSR2, break_or_repair, broken)
    await supervisor.open()
    for name, command in commands.items():
        supervisor.start_process(name, command, broken if name == "broken" else dict(os.environ))
    await stop_requested.wait()
    await supervisor.stop()


def set_clock_back(now=time.time):
    time.time = lambda: now() - 3600
    print("the clock is set back", flush=True)


def break_or_repair(environment):
    if environment.pop("NUMBER", None) is None:
        environment["NUMBER"] = 1  # not a string
    print("the environment is changed", flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
