"""Keeps the processes of one copy of the shop running, with circus doing the work.

    supervisor = Supervisor()
    await supervisor.open()
    supervisor.start_process("orders", ["nameko", "run", "services.orders"], environment)
    await supervisor.stop()

A process that dies is started again within a second or two, without end. Each line it prints
appears on our terminal behind its name. The infrastructure is stopped after those who use it.
"""

import asyncio
import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from itertools import cycle

from circus.arbiter import Arbiter
from circus.process import Process
from circus.watcher import Watcher
from tornado import gen
from tornado.ioloop import IOLoop

from dev.settings import ROOT

# How long a dead process stays dead at most, and what keeps a crash loop from taking the machine's time.
SECONDS_BETWEEN_LOOKS = 1.0
# What has not ended by then is killed.
SECONDS_TO_END = 7
INFRASTRUCTURE = 1
NEVER = -1


class Supervisor(Arbiter):
    """Circus' arbiter, run inside an event loop of ours, without its network control and its looks.

    Those end for all at the first watcher's error, and for an hour when the clock is set back by one.
    """

    def __init__(self):
        super().__init__(
            [],
            endpoint="inproc://forage-control",
            pubsub_endpoint="inproc://forage-events",
            check_delay=NEVER,
            loop=IOLoop.current(),
            proc_name="forage",
        )
        logging.getLogger("circus").setLevel(logging.WARNING)
        self._colours = cycle(range(31, 37))
        self._keepers = []

    async def open(self):
        await super().start()

    def start_process(
        self, name, command, environment, infrastructure=False, user=None, folder=ROOT, stop_signal=signal.SIGTERM
    ):
        """Starts it in that folder and keeps it running. user: an account to run it as, when we are root."""
        colour = next(self._colours)
        watcher = OneProcess(
            name,
            command[0],
            args=command[1:],
            env=environment,
            working_dir=str(folder),
            uid=user,
            priority=INFRASTRUCTURE if infrastructure else 0,
            max_retry=1,
            stop_signal=stop_signal,
            graceful_timeout=SECONDS_TO_END,
            stdout_stream={"stream": NamedLines(name, colour)},
            stderr_stream={"stream": NamedLines(name, colour)},
        )
        watcher.initialize(self.evpub_socket, self.sockets, self)
        self.watchers.append(watcher)
        self._keepers.append(asyncio.create_task(keep_running(watcher)))

    async def stop(self):
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for priority in (0, INFRASTRUCTURE):
            await gen.multi([watcher._stop() for watcher in self.watchers if watcher.priority == priority])
        self.stop_controller_and_close_sockets()


async def keep_running(watcher):
    """A task for each, so that none waits for another or ends with it."""
    fault = None
    while True:
        try:
            await watcher.look()
            fault = None
        except Exception as error:
            before, fault = fault, "".join(traceback.format_exception_only(error)).strip()
            if fault != before:
                show(f"forage: {watcher.name} can't be started, and is tried again every second: {fault}\n")
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


class OneProcess(Watcher):
    async def look(self):
        """Starts it, unless it is running."""
        for process in list(self.processes.values()):
            if process.is_alive():
                continue
            exit_code = process.returncode()
            how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
            show(f"forage: {self.name} {how}; starting it again\n")
            # What it leaves behind would hold its port, as nginx's workers do.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # Reaping closes its pipes, whose numbers may be another's next. The event loop must have forgotten them.
            self.stream_redirector.remove_redirections(process)
            self.reap_process(process.pid)
        await self._start()

    @property
    def _process_class(self):
        return LoudProcess


class LoudProcess(Process):
    def spawn(self):
        try:
            super().spawn()
        except (OSError, ValueError) as error:
            # Circus would log these two at every try, and give up.
            raise RuntimeError(str(error)) from error


def show(text):
    """On the terminal. That it is gone, or takes nothing at the moment, must not end the care for the processes."""
    with suppress(OSError):
        sys.stdout.write(text)
        sys.stdout.flush()


class NamedLines:
    """Puts the process's name before each line it prints. Circus hands over chunks, not lines."""

    width = 0

    def __init__(self, name, colour):
        self.name, self.colour = name, colour
        self.rest = b""
        NamedLines.width = max(NamedLines.width, len(name))

    def __call__(self, chunk):
        *lines, self.rest = (self.rest + chunk["data"]).split(b"\n")
        prefix = f"{self.name:{self.width}} | "
        if sys.stdout.isatty():
            prefix = f"\033[{self.colour}m{prefix}\033[0m"
        show("".join(f"{prefix}{line.decode(errors='replace')}\n" for line in lines))
