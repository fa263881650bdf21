"""`make orders`: one service, or the gateway, beside `make infrastructure`. Ctrl-C ends it.

    LOG_LEVEL=DEBUG make orders

It starts again when its code changes; `breakpoint()` works in it. It uses the addresses of that infrastructure. Its
other settings come from this terminal, and where this sets none, from the infrastructure. It ends with the
infrastructure.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress

from contracts.types import SERVICES
from dev.leftovers import claim, end_with_parent, processes_of
from dev.settings import OWN, ROOT, local_folder, read_env_file
from nameko_reliable.testing.servers import CannotStart, answers_amqp

CODE = ("contracts", "extensions", "gateway", "gateway/routes", "kit/src/nameko_reliable/**", "services")
WATCHED = ("config.yaml", "templates/**/*.*", *(f"{folder}/*.py" for folder in CODE))
LOOK_SECONDS = 0.5
# Longer than a service takes to finish its calls, mails and events.
STOP_SECONDS = 15


def main(name):
    if "MAKELEVEL" in os.environ:
        end_with_parent()
    try:
        folder = local_folder(os.environ)
        module = module_of(name)
        require_infrastructure(folder)
        settings = settings_of(folder)
        if not answers_amqp(settings["AMQP_URI"]):
            raise CannotStart("The infrastructure is not up yet, or its broker has ended. Wait, or start it again.")
        refuse_second(name, module, folder)
    except CannotStart as reason:
        sys.exit(f"forage: {reason}")
    environment = {**settings, "PYTHONUNBUFFERED": "1", "FORAGE_COPY": str(folder)}
    run_and_reload([ROOT / ".venv/bin/nameko", "run", "--config", "config.yaml", module], environment)


def run_and_reload(command, environment):
    """Runs the command until Ctrl-C, which a terminal also sends to it. Then exits with the command's exit code."""
    while True:
        before = changed_at()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=end_with_parent)
        try:
            wait_for_change(before, process)
        except KeyboardInterrupt:
            sys.exit(stopped(process))
        say("the code has changed, starting again")
        process.terminate()
        stopped(process)


def wait_for_change(before, process):
    has_ended = False
    while changed_at() == before:
        if process.poll() is not None and not has_ended:
            has_ended = True
            say("the process has ended, and starts again when its code changes")
        time.sleep(LOOK_SECONDS)


def changed_at():
    """{path: time of its last change}, of the files that a process reads when it starts."""
    times = {}
    for path in (path for pattern in WATCHED for path in ROOT.glob(pattern)):
        # An editor may replace a file when it saves it.
        with suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime_ns
    return times


def stopped(process):
    """Waits for the end of a process that got a signal, and returns its exit code."""
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def module_of(name):
    if name == "gateway":
        return name
    if name not in SERVICES:
        raise CannotStart(f"There is no service {name}: take one of {', '.join(SERVICES)}, or gateway.")
    return f"services.{name}"


def require_infrastructure(folder):
    try:
        if folder.exists():
            with claim(folder):
                pass
    except CannotStart:
        if (folder / "env").exists():
            return
        raise CannotStart("The infrastructure is not up yet: wait until it says that it is.") from None
    raise CannotStart("The infrastructure is not running: run `make infrastructure` in another terminal first.")


def settings_of(folder):
    """The settings of this terminal over those of the env file, and the copy's own addresses over both."""
    written = read_env_file(folder / "env")
    own = {name: written[name] for name in written.get(OWN, "").split()}
    return {**written, **os.environ, **own}


def refuse_second(name, module, folder):
    for process in processes_of(folder, module):
        raise CannotStart(f"{name} is running already, as process {process.pid}: end that first.")


def say(sentence):
    print(f"forage: {sentence}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
