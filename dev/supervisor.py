"""Keeps the processes of one copy of the shop running, by means of circus.

    supervisor = Supervisor()
    await supervisor.open()
    supervisor.start_process("orders", ["nameko", "run", "services.orders"], environment)
    await supervisor.stop()

A process that dies is started again within two seconds, any number of times. Each line that it prints appears on our
terminal after its name. The infrastructure is stopped last.
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

# The longest time until a dead process is started again. Also limits the CPU time that a crash loop takes.
CHECK_INTERVAL_SECONDS = 1.0
# A process that has not ended by then is killed.
SECONDS_TO_END = 7
INFRASTRUCTURE = 1
NEVER = -1


class Supervisor(Arbiter):
    """Circus' arbiter in our own event loop, without its network control and its periodic checks.

    Those checks stop for all processes at the first error of a watcher, and pause for an hour if the clock is set back
    by one.
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
        self._tasks = []

    async def open(self):
        await super().start()

    def start_process(
        self, name, command, environment, infrastructure=False, user=None, folder=ROOT, stop_signal=signal.SIGTERM
    ):
        """Starts a command in that folder and keeps it running. user: the account to run it as, if we are root."""
        colour = next(self._colours)
        watcher = ProcessWatcher(
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
            stdout_stream={"stream": PrefixedLines(name, colour)},
            stderr_stream={"stream": PrefixedLines(name, colour)},
        )
        watcher.initialize(self.evpub_socket, self.sockets, self)
        self.watchers.append(watcher)
        self._tasks.append(asyncio.create_task(keep_running(watcher)))

    async def stop(self):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for priority in (0, INFRASTRUCTURE):
            await gen.multi([watcher._stop() for watcher in self.watchers if watcher.priority == priority])
        self.stop_controller_and_close_sockets()


async def keep_running(watcher):
    """Runs as one task for each process, so that no process waits for another or ends with it."""
    fault = None
    while True:
        try:
            await watcher.ensure_running()
            fault = None
        except Exception as error:
            before, fault = fault, "".join(traceback.format_exception_only(error)).strip()
            if fault != before:
                show(f"forage: {watcher.name} can't be started, and is tried again every second: {fault}\n")
        await asyncio.sleep(CHECK_INTERVAL_SECONDS)


class ProcessWatcher(Watcher):
    async def ensure_running(self):
        """Starts the process, unless it is running."""
        for process in list(self.processes.values()):
            if process.is_alive():
                continue
            exit_code = process.returncode()
            how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
            show(f"forage: {self.name} {how}; starting it again\n")
            # Its children would keep its port open, as nginx's workers do.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # Reaping closes its pipes, and another pipe may get their descriptors. So the event loop drops them first.
            self.stream_redirector.remove_redirections(process)
            self.reap_process(process.pid)
        await self._start()

    @property
    def _process_class(self):
        return RaisingProcess


class RaisingProcess(Process):
    def spawn(self):
        try:
            super().spawn()
        except (OSError, ValueError) as error:
            # Circus would log these two at every try, and stop trying.
            raise RuntimeError(str(error)) from error


def show(text):
    """Prints on the terminal. If this fails, since it is closed or blocked, the supervisor goes on."""
    with suppress(OSError):
        sys.stdout.write(text)
        sys.stdout.flush()


class PrefixedLines:
    """Prints the process's name before each of its lines. Circus passes chunks, not lines."""

    width = 0

    def __init__(self, name, colour):
        self.name, self.colour = name, colour
        self.rest = b""
        PrefixedLines.width = max(PrefixedLines.width, len(name))

    def __call__(self, chunk):
        *lines, self.rest = (self.rest + chunk["data"]).split(b"\n")
        prefix = f"{self.name:{self.width}} | "
        if sys.stdout.isatty():
            prefix = f"\033[{self.colour}m{prefix}\033[0m"
        show("".join(f"{prefix}{line.decode(errors='replace')}\n" for line in lines))
