"""Where the CPU of a scenario goes: py-spy's samples of the shop's Python processes, by library and by function.

Sampling slows the processes down a little, so don't compare rows that were measured during a profile.
"""

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from benchmarks.load import BenchmarkFailed
from benchmarks.report import PARTS
from dev.settings import ROOT

SAMPLES_PER_SECOND = 100
FUNCTIONS = 40
# Of all samples.
MIN_SHARE = 0.005
END_SECONDS = 60
# Threads and event loops that wait for work. py-spy often counts them as busy, even in idle processes.
WAITING = re.compile(r"(.*\.)?(wait \(.*/threading|do_poll \(.*/eventlet/hubs/\w+)\.py:\d+\)")
FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(?::\d+)?\)")


def find_py_spy():
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def require():
    """Raise BenchmarkFailed unless py-spy is there and may read other processes."""
    program = find_py_spy()
    if program is None:
        raise BenchmarkFailed("PROFILE needs py-spy, which `make` installs into .venv.")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        tried = subprocess.run([program, "dump", "--pid", str(process.pid)], capture_output=True, text=True)
        process.communicate(b"\n")
    if tried.returncode:
        reason = " ".join(tried.stderr.split()) or "it gave no reason"
        raise BenchmarkFailed(f"PROFILE needs the right to read other processes (root, or CAP_SYS_PTRACE): {reason}")


@contextmanager
def profiled(shop):
    """Sample the shop's processes during the block, and print the shares at its end."""
    recorders = {part: _record(shop, part, replica) for part in PARTS for replica in shop.replicas[part]}
    yield
    samples = {}
    for part, (recorder, path) in recorders.items():
        recorder.send_signal(signal.SIGINT)
        try:
            _, reason = recorder.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            recorder.kill()
            reason = "it did not end"
        if not path.exists():
            raise BenchmarkFailed(f"py-spy has no samples of {part}: {reason}")
        samples[part] = parse(path.read_text())
    print_shares("library", {part: by_library(stacks) for part, stacks in samples.items()}, None)
    print_shares("function", {part: by_function(stacks) for part, stacks in samples.items()}, FUNCTIONS)


def _record(shop, part, replica):
    path = shop.folder / f"{part}.stacks"
    options = ["--format=raw", "--full-filenames", f"--rate={SAMPLES_PER_SECOND}", f"--output={path}"]
    command = [find_py_spy(), "record", "--pid", str(replica.process.pid), *options]
    # A session of its own: Ctrl-C is for us, and ends it by the signal below.
    recorder = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    return recorder, path


def parse(text):
    """{(frame, …): samples}, the innermost frame last, without threads that wait.

    text: a line for each stack, frames with ; between them.
    """
    stacks = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = tuple(stack.split(";"))
        if not WAITING.fullmatch(frames[-1]):
            stacks[frames] += int(count)
    return stacks


def by_library(stacks):
    """{library: samples}: of the innermost frames."""
    shares = Counter()
    for stack, count in stacks.items():
        shares[library_of(stack[-1])] += count
    return shares


def by_function(stacks):
    shares = Counter()
    for stack, count in stacks.items():
        matched, library = FRAME.fullmatch(stack[-1]), library_of(stack[-1])
        shares[f"{library}: {matched['function']} ({Path(matched['file']).name})" if matched else library] += count
    return shares


def library_of(frame):
    """The package of a frame's file: of site-packages, of ours by its folder, else Python's own."""
    matched = FRAME.fullmatch(frame)
    if matched is None:
        return "other"
    file = matched["file"]
    _, installed, rest = file.rpartition("/site-packages/")
    if installed:
        return rest.partition("/")[0].removesuffix(".py")
    kit = f"{ROOT}/kit/src/"
    if file.startswith(kit):
        return file.removeprefix(kit).partition("/")[0]
    if file.startswith(f"{ROOT}/"):
        return file.removeprefix(f"{ROOT}/").partition("/")[0]
    return "Python" if "/lib/python" in file or file.startswith("<") else "other"


def print_shares(kind, samples, most):
    """samples: {part: {name: samples}}. Each share is of all samples of all parts."""
    totals = Counter()
    for shares in samples.values():
        totals.update(shares)
    total = sum(totals.values()) or 1
    parts = list(samples)
    print(f"\nCPU by {kind}, % of all samples\n{'':64} {'all':>7} " + " ".join(f"{part[:8]:>8}" for part in parts))
    for name, count in totals.most_common(most):
        if count / total < MIN_SHARE:
            break
        cells = " ".join(f"{samples[part][name] / total * 100:8.1f}" for part in parts)
        print(f"{name[:64]:64} {count / total * 100:7.1f} {cells}", flush=True)
