"""Ensures that one copy of the shop runs once, and that none of its processes outlives it."""

import ctypes
import fcntl
import os
import signal
from contextlib import contextmanager, suppress

import psutil

from nameko_reliable.testing.servers import CannotStart

SECONDS_TO_END = 5


@contextmanager
def claim(folder):
    """Locks the folder for one supervisor. The lock ends with the process, also when it is killed."""
    with open(folder / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(
                f"The copy in {folder} is running already. To start another one, set LOCAL_DIR and other ports."
            ) from None
        yield


def end_leftovers(folder):
    """Ends processes of this copy that an earlier supervisor left."""
    left = processes_of(folder)
    for process in left:
        send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(left, timeout=SECONDS_TO_END)
    for process in alive:
        send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=SECONDS_TO_END)


def processes_of(folder, argument=None):
    """The processes of this copy, found by their environment; nginx, which overwrites its own, by its folder.

    argument: only those that have it in their command line.
    """
    nginx = str((folder / "nginx").resolve())

    def is_ours(process):
        try:
            if argument is not None and argument not in process.cmdline():
                return False
            if process.name() == "nginx":
                return process.cwd() == nginx
            return process.environ().get("FORAGE_COPY") == str(folder)
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if is_ours(process)]


def send(process, signal_number):
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal_number)


def end_with_parent():
    """Ends this process when its parent, `make`, is killed. Linux only; elsewhere the next start ends leftovers."""
    if os.uname().sysname == "Linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
