"""A supervisor over some commands: python -m tests.infrastructure.supervised '{"name": ["a", "command"], …}'.

SIGUSR1 sets this process's clock back by an hour. SIGUSR2 spoils the environment of the command named "spoiled", so
that it can't be started, and at the next SIGUSR2 mends it.
"""

import asyncio
import json
import os
import signal
import sys
import time

from dev.supervisor import Supervisor


async def main(commands):
    told_to_stop, spoiled = asyncio.Event(), dict(os.environ)
    supervisor = Supervisor()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told_to_stop.set)
    loop.add_signal_handler(signal.SIGUSR1, set_clock_back)
    loop.add_signal_handler(signal.SIGUSR2, spoil_or_mend, spoiled)
    await supervisor.open()
    for name, command in commands.items():
        supervisor.start_process(name, command, spoiled if name == "spoiled" else dict(os.environ))
    await told_to_stop.wait()
    await supervisor.stop()


def set_clock_back(now=time.time):
    time.time = lambda: now() - 3600
    print("the clock is set back", flush=True)


def spoil_or_mend(environment):
    if environment.pop("NUMBER", None) is None:
        environment["NUMBER"] = 1  # no string
    print("the environment is changed", flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
