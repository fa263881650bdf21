"""Keeps the processes of one copy of the shop running, with circus doing the work.

    supervisor = Supervisor()
    await supervisor.open()
    await supervisor.start_process("orders", ["nameko", "run", "services.orders"], environment)
    await supervisor.stop()

A process that dies is started again within a second or two, without end. Each line it prints
appears on our terminal behind its name. The infrastructure is stopped after those who use it.
"""

import logging
import signal
import sys
from itertools import cycle

from circus.arbiter import Arbiter
from circus.process import DEAD_OR_ZOMBIE, UNEXISTING
from circus.watcher import Watcher
from tornado import gen
from tornado.ioloop import IOLoop

from scripts.settings import ROOT

# How long a dead process stays dead at most, and what keeps a crash loop from taking the machine's time.
SECONDS_BETWEEN_LOOKS = 1.0
# What has not ended by then is killed.
SECONDS_TO_END = 7
INFRASTRUCTURE = 1


class Supervisor(Arbiter):
    """Circus' arbiter, run inside an event loop of ours, without its network control."""

    def __init__(self):
        super().__init__(
            [],
            endpoint="inproc://forage-control",
            pubsub_endpoint="inproc://forage-events",
            check_delay=SECONDS_BETWEEN_LOOKS,
            loop=IOLoop.current(),
            proc_name="forage",
        )
        logging.getLogger("circus").setLevel(logging.WARNING)
        self._colours = cycle(range(31, 37))

    async def open(self):
        await super().start()

    async def start_process(
        self, name, command, environment, infrastructure=False, user=None, folder=ROOT, stop_signal=signal.SIGTERM
    ):
        """Starts it in that folder and keeps it running. user: an account to run it as, when we are root."""
        colour = next(self._colours)
        watcher = Watcher(
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
            hooks={"after_reap": (announce_death, True)},
        )
        watcher.initialize(self.evpub_socket, self.sockets, self)
        self.watchers.append(watcher)
        await self.start_watcher(watcher)

    async def stop(self):
        self._stopping = True
        self.ctrl.caller.stop()
        for priority in (0, INFRASTRUCTURE):
            await gen.multi([watcher._stop() for watcher in self.watchers if watcher.priority == priority])
        self.stop_controller_and_close_sockets()

    async def manage_watchers(self):
        """What circus calls at every look. Its own would take the exit codes of the migrations, too."""
        for watcher in self.watchers:
            for process in list(watcher.processes.values()):
                if process.status in (DEAD_OR_ZOMBIE, UNEXISTING):
                    watcher.reap_process(process.pid)
            await watcher.manage_processes()
            if watcher.is_stopped() and not self._stopping:
                # Its program could not even be run, which makes circus give up.
                await self.start_watcher(watcher)


def announce_death(watcher, exit_code, **_):
    if not watcher.is_stopping():
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        print(f"forage: {watcher.name} {how}; starting it again", flush=True)
    return True


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
        for line in lines:
            sys.stdout.write(prefix + line.decode(errors="replace") + "\n")
        sys.stdout.flush()
