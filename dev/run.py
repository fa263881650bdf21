"""`make run`: the whole shop on one machine, until Ctrl-C.

`make dev` (`python -m dev.run dev`) serves the storefront's sources with hot reload, not a build.
`make infrastructure` (`python -m dev.run infrastructure`) runs no services. `make orders` runs one beside it.
"""

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
import warnings

from contracts.types import SERVICES
from dev import frontend, npm
from dev.leftovers import claim, end_leftovers, end_with_parent
from dev.mail_catcher import MailCatcher
from dev.nginx import Nginx
from dev.programs import require_programs
from dev.servers import make_databases, passwords_of, postgres_of, rabbitmq_of
from dev.settings import DATABASE_URIS, MANAGEMENT, ROOT, LocalSettings
from dev.sign_in_provider import SignInProvider
from dev.supervisor import Supervisor
from nameko_reliable.testing.servers import CannotStart, answers_amqp

SECONDS_TO_COME_UP = 90


def main(arguments):
    mode = arguments[0] if arguments else "run"
    if "MAKELEVEL" in os.environ:
        end_with_parent()
    try:
        settings = LocalSettings()
        with claim(settings.folder):
            end_leftovers(settings.folder)
            config = checked_settings(settings)
            settings.refuse_taken_ports(with_services=mode != "infrastructure")
            require_programs(settings, serves_pages=mode == "run")
            npm.install(npm.DOCS, "the page of /docs")
            if not settings.own_broker:
                require_given_broker(config)
            try:
                asyncio.run(run_until_stopped(settings, mode))
            finally:
                end_leftovers(settings.folder)
    except CannotStart as reason:
        sys.exit(f"forage: {reason}")


def checked_settings(settings):
    """The settings that the processes will load. Ends with a list of their faults before anything is started."""
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")  # docs/decisions/ says why we use it
    from contracts.settings import ShopSettings
    from nameko_reliable.settings import checked

    system = settings.process_settings()
    uris = {service: system[name] for service, name in zip(SERVICES, DATABASE_URIS, strict=True)}
    ours = {**settings.ports, "AMQP_URI": system["AMQP_URI"], "DB_URIS": uris}
    return checked(ShopSettings(), {**settings.given, **ours})


def require_given_broker(config):
    from nameko_reliable.amqp.broker import CONNECTION_ERRORS, connect
    from nameko_reliable.settings import amqp_address

    try:
        connect(amqp_address(config)).close()
    except CONNECTION_ERRORS as error:
        raise CannotStart(f"AMQP_URI is set, but its broker can't be used: {error}. Correct or unset it.") from None


async def run_until_stopped(settings, mode):
    stop_requested = asyncio.Event()
    supervisor = Supervisor()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        asyncio.get_running_loop().add_signal_handler(number, stop_requested.set)
    await supervisor.open()
    waiting = asyncio.create_task(stop_requested.wait())
    starting = asyncio.create_task(Shop(settings, supervisor, mode).start())
    try:
        await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await waiting
    finally:
        say("stopping")
        starting.cancel()
        await asyncio.wait([starting])
        await supervisor.stop()


class Shop:
    """mode: run, dev or infrastructure."""

    def __init__(self, settings, supervisor, mode):
        self.settings = settings
        self.supervisor = supervisor
        self.mode = mode
        self.environment = settings.environment()

    async def start(self):
        """Starts everything. Each part starts as soon as the parts that it needs are up."""
        started_at = time.monotonic()
        await asyncio.gather(
            self.start_broker(),
            self.start_databases(),
            self.start_mail_catcher(),
            self.start_sign_in_provider(),
            self.prepare_frontend(),
        )
        self.settings.write_env_file()
        if self.mode != "infrastructure":
            for service in SERVICES:
                self.start_nameko(service, f"services.{service}")
            self.start_nameko("gateway", "gateway")
            self.start_frontend()
            await until(self.is_healthy, "the gateway to report all services up")
            await until(self.storefront_answers, "the storefront to come up")
            await run_checked(sys.executable, "ops/seed.py", environment=self.environment)
        print(summary(self.settings, time.monotonic() - started_at, self.mode), flush=True)

    async def start_broker(self):
        if not self.settings.own_broker:
            return
        rabbitmq = rabbitmq_of(self.settings)
        rabbitmq.prepare()
        environment = {**self.environment, **rabbitmq.environment()}
        self.supervisor.start_process("epmd", rabbitmq.name_service_command(), environment, infrastructure=True)
        self.supervisor.start_process("rabbitmq", rabbitmq.command(), environment, infrastructure=True)
        await until(lambda: answers_amqp(self.settings.amqp_uri()), "RabbitMQ to come up")

    async def start_databases(self):
        if self.settings.own_databases:
            await self.start_postgres()
        await run_checked(sys.executable, "-m", "ops.migrate", environment=self.environment)

    async def start_postgres(self):
        postgres = postgres_of(self.settings)
        await asyncio.to_thread(postgres.prepare)
        self.supervisor.start_process(
            "postgres",
            postgres.command(),
            self.environment,
            infrastructure=True,
            user=postgres.account,
            folder=postgres.folder,
            stop_signal=signal.SIGINT,  # at SIGTERM it would wait for its clients to disconnect
        )
        await until(postgres.is_ready, "PostgreSQL to come up")
        await asyncio.to_thread(make_databases, postgres, passwords_of(self.settings))

    async def start_mail_catcher(self):
        if not self.settings.own_mail_catcher:
            return
        catcher = MailCatcher(self.settings)
        await asyncio.to_thread(catcher.prepare)
        self.supervisor.start_process("mail", catcher.command(), self.environment, infrastructure=True)
        # Not waited for: a mail that finds no server is tried again.

    async def start_sign_in_provider(self):
        if self.settings.own_sign_in_provider:
            command = SignInProvider(self.settings).command()
            self.supervisor.start_process("sign-in", command, self.environment, infrastructure=True)
            # Not waited for: it is only needed when a customer signs in.

    async def prepare_frontend(self):
        module = "dev.frontend" if self.mode == "run" else "dev.npm"
        await run_checked(sys.executable, "-m", module, environment=self.environment, is_shown=True)
        if self.mode == "run":
            self.nginx = Nginx(self.settings.folder / "nginx", self.settings.storefront_settings())
            await asyncio.to_thread(self.nginx.prepare, frontend.DIST)

    def start_frontend(self):
        if self.mode == "dev":
            self.supervisor.start_process(
                "frontend", frontend.hot_reload_command(), self.environment, folder=npm.FRONTEND
            )
        else:
            self.supervisor.start_process(
                "frontend", self.nginx.command(), self.environment, infrastructure=True, folder=self.nginx.folder
            )

    def start_nameko(self, name, module):
        command = ["nameko", "run", "--config", "config.yaml", module]
        self.supervisor.start_process(name, command, self.environment)

    def storefront_answers(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.ports['FRONTEND_PORT']}", timeout=5):
                return True
        except OSError:
            return False

    def is_healthy(self):
        try:
            with urllib.request.urlopen(f"{gateway_address(self.settings)}/health", timeout=5) as answer:
                return json.load(answer)["status"] == "healthy"
        except OSError:
            return False


async def until(condition, what):
    deadline = time.monotonic() + SECONDS_TO_COME_UP
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline:
            raise CannotStart(f"Waited {SECONDS_TO_COME_UP} s for {what}. The lines above say what went wrong.")
        await asyncio.sleep(0.1)


async def run_checked(*command, environment, is_shown=False):
    """Runs a command and raises CannotStart if it fails. is_shown: print its output when it succeeds, too."""
    pipes = {} if is_shown else {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    # In its own session the command does not receive Ctrl-C; only this process handles it.
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        reason = "the lines above say why." if is_shown else f"\n{output.decode(errors='replace')}"
        raise CannotStart(f"`{' '.join(command)}` failed: {reason}")


def gateway_address(settings):
    return f"http://127.0.0.1:{settings.ports['GATEWAY_PORT']}"


def summary(settings, seconds, mode):
    gateway = gateway_address(settings)
    password = settings.given.get("DEMO_PASSWORD") or "chanterelle"
    local = {name: f"127.0.0.1:{port}" for name, port in settings.ports.items()}
    lines = [f"Forage is up after {seconds:.0f} s. Ctrl-C ends it.", ""]
    if mode != "infrastructure":
        lines += [
            f"  shop          {settings.process_settings()['FRONTEND_URL']}",
            f"  gateway       {gateway}, its API on {gateway}/docs",
            f"  accounts      admin@forage.example, ada@forage.example, bo@forage.example, all with {password}",
        ]
    if settings.own_mail_catcher:
        lines += [f"  mails         http://{local['MAIL_WEB_PORT']}, received on port {settings.ports['SMTP_PORT']}"]
    if settings.own_sign_in_provider:
        issuer = settings.process_settings()["OIDC_ISSUER"]
        lines += [f"  sign-in       on the shop's login page, with the provider on {issuer}"]
    if settings.own_broker:
        lines += [f"  RabbitMQ      {local['RABBITMQ_PORT']}"]
    if MANAGEMENT in local:
        lines += [f"                http://{local[MANAGEMENT]}, user forage, password {settings.secret('rabbitmq')}"]
    if settings.own_databases:
        lines += [f"  PostgreSQL    {local['POSTGRES_PORT']}"]
    if mode != "infrastructure":
        lines += ["", f"  curl '{gateway}/products?limit=3'"]
    lines += [
        "",
        "From another terminal, in this folder:",
        "",
        f"  source .venv/bin/activate; source {settings.folder / 'env'}",
        "  nameko shell --config config.yaml                  # then: n.rpc.products.list_products(limit=3)",
    ]
    if mode == "infrastructure":
        shop = settings.process_settings()["FRONTEND_URL"]
        lines += [
            "  make orders                                        # the service orders; `make gateway` for the gateway",
            f"  npm --prefix frontend run dev                      # the storefront, on {shop}",
        ]
    else:
        lines += ["  nameko run --config config.yaml services.orders    # one more replica, of orders or any other"]
    return "\n".join(["", *lines, ""])


def say(sentence):
    print(f"forage: {sentence}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
