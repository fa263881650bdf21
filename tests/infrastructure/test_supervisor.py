"""A process of `make run` that dies is started again within 5 s, any number of times, independently of the others."""

import json
import signal
import subprocess
import sys

import psutil
import pytest

from dev.settings import ROOT
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.processes import is_alive

pytestmark = pytest.mark.server

PROCESS = ["sleep", "1000"]
# Its child outlives it and keeps its output open, like PostgreSQL's children, which have their own sessions.
WITH_CHILD = ["sh", "-c", "setsid sleep 20 & exec sleep 1000"]
# Its child stays in its process group, like nginx's workers.
WITH_WORKER = ["sh", "-c", "sleep 20 & exec sleep 1000"]


class Supervised:
    """A supervisor in its own process, and the commands that it keeps running."""

    def __init__(self, log, commands):
        self.log, self.commands, self.left = log, commands, []
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.infrastructure.supervised", json.dumps(commands)],
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )
        wait_for(lambda: len(self.running()) == len(commands), seconds=20)

    def running(self):
        return {child for child in psutil.Process(self.process.pid).children() if is_up(child)}

    def kill_all(self):
        """Kill the processes, but not their children. Returns the killed processes."""
        killed = self.running()
        for process in killed:
            self.left += process.children()
            process.kill()
        return killed

    def wait_for_others_than(self, killed, count=None):
        """Wait until `count` new processes run in place of those killed, by default one for each command."""
        count = count or len(self.commands)
        wait_for(lambda: len(self.running() - killed) == count and not self.running() & killed, seconds=5)

    def send(self, signal_number, answer):
        answers = self.output().count(answer)
        self.process.send_signal(signal_number)
        wait_for(lambda: self.output().count(answer) > answers)

    def output(self):
        return self.log.read_text()

    def stop(self):
        self.left += [child for process in self.running() for child in process.children()]
        self.process.terminate()
        self.process.wait(15)
        for process in self.left:
            if process.is_running():
                process.kill()


def is_up(process):
    try:
        return process.cmdline()[1:] == PROCESS[1:]
    except psutil.Error:
        return False


@pytest.fixture
def supervise(tmp_path):
    started = []

    def supervise(**commands):
        started.append(Supervised(tmp_path / "supervisor.log", commands))
        return started[-1]

    yield supervise
    for supervised in started:
        supervised.stop()


def test_processes_killed_together_are_all_restarted_each_time(supervise):
    supervised = supervise(postgres=WITH_CHILD, orders=WITH_CHILD, products=WITH_CHILD)

    for _ in range(3):
        supervised.wait_for_others_than(supervised.kill_all())

    assert supervised.output().count("products was killed by signal 9; starting it again") == 3
    assert "Traceback" not in supervised.output()


def test_workers_end_when_their_process_is_killed(supervise):
    supervised = supervise(nginx=WITH_WORKER)
    [process] = supervised.running()
    [worker] = process.children()

    supervised.wait_for_others_than(supervised.kill_all())

    wait_for(lambda: not is_alive(worker), seconds=5)


def test_a_process_that_cannot_start_delays_no_other_and_is_retried(supervise):
    supervised = supervise(users=PROCESS, broken=PROCESS, orders=PROCESS)
    supervised.send(signal.SIGUSR2, "the environment is changed")

    supervised.wait_for_others_than(supervised.kill_all(), count=2)
    supervised.wait_for_others_than(supervised.kill_all(), count=2)

    wait_for(lambda: "broken can't be started, and is tried again every second: TypeError" in supervised.output())
    supervised.send(signal.SIGUSR2, "the environment is changed")
    wait_for(lambda: len(supervised.running()) == 3, seconds=5)
    assert supervised.output().count("can't be started") == 1


def test_a_missing_program_is_reported_once_and_started_when_it_appears(supervise, tmp_path):
    program = tmp_path / "program"
    program.symlink_to("/bin/sleep")
    supervised = supervise(users=[str(program), "1000"], orders=PROCESS)
    program.unlink()

    supervised.wait_for_others_than(supervised.kill_all(), count=1)
    supervised.wait_for_others_than(supervised.kill_all(), count=1)

    wait_for(lambda: "users can't be started, and is tried again every second" in supervised.output())
    assert f"No such file or directory: '{program}'" in supervised.output()
    program.symlink_to("/bin/sleep")
    wait_for(lambda: len(supervised.running()) == 2, seconds=5)
    assert supervised.output().count("can't be started") == 1


def test_processes_are_restarted_after_the_clock_was_set_back(supervise):
    supervised = supervise(users=PROCESS, orders=PROCESS)
    supervised.send(signal.SIGUSR1, "the clock is set back")

    for _ in range(2):
        supervised.wait_for_others_than(supervised.kill_all())
