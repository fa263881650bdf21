"""`make orders`: one service, or the gateway, beside `make infrastructure`. Ctrl-C ends it.

    LOG_LEVEL=DEBUG make orders

It gets the addresses of that infrastructure, and its other settings where this terminal sets none. It ends with the
infrastructure.
"""

import os
import sys

from contracts.types import SERVICES
from dev.leftovers import claim, end_with_parent, processes_of
from dev.settings import OWN, ROOT, local_folder, read_env_file
from nameko_reliable.testing.servers import CannotStart, answers_amqp

START = "run `make infrastructure` in another terminal first."


def main(name):
    if "MAKELEVEL" in os.environ:
        end_with_parent()
    try:
        folder = local_folder(os.environ)
        module = module_of(name)
        require_infrastructure(folder)
        settings = settings_of(folder)
        if not answers_amqp(settings["AMQP_URI"]):
            raise CannotStart("The infrastructure is not up yet, or its broker has ended: wait, or start it again.")
        refuse_second(name, module, folder)
    except CannotStart as reason:
        sys.exit(f"forage: {reason}")
    environment = {**settings, "PYTHONUNBUFFERED": "1", "FORAGE_COPY": str(folder)}
    nameko = f"{ROOT}/.venv/bin/nameko"
    os.chdir(ROOT)
    # In place of this process: Ctrl-C and a debugger reach Nameko itself.
    os.execve(nameko, [nameko, "run", "--config", "config.yaml", module], environment)  # noqa: S606


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
        raise CannotStart("The infrastructure is not up yet: wait for the line that says so.") from None
    raise CannotStart(f"The infrastructure does not run: {START}")


def settings_of(folder):
    """This terminal's, over those of the env file, but for the addresses of the copy's own infrastructure."""
    written = read_env_file(folder / "env")
    own = {name: written[name] for name in written.get(OWN, "").split()}
    return {**written, **os.environ, **own}


def refuse_second(name, module, folder):
    for process in processes_of(folder):
        if module in process.cmdline():
            raise CannotStart(f"{name} runs already, as process {process.pid}: end that first.")


if __name__ == "__main__":
    main(sys.argv[1])
