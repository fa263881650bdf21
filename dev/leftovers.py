"""Makes sure that one copy runs once, and that nothing of it outlives it."""

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
    """Holds the folder for one supervisor, until it ends in whatever way."""
    with open(folder / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(
                f"The copy in {folder} is running already; LOCAL_DIR and other ports start one more."
            ) from None
        yield


def end_leftovers(folder):
    """Ends the processes of this copy that are there without a supervisor."""
    left = processes_of(folder)
    for process in left:
        send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(left, timeout=SECONDS_TO_END)
    for process in alive:
        send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=SECONDS_TO_END)


def processes_of(folder):
    """Those of this copy, known by their environment; nginx's, which write their titles over it, by where they run."""
    nginx = str((folder / "nginx").resolve())

    def is_ours(process):
        try:
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
    """Whoever kills `make` means us too. Linux only; elsewhere the next start clears up."""
    if os.uname().sysname == "Linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
