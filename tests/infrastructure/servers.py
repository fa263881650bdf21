"""Servers as child processes of the tests, started and stopped at will."""

import os
import shutil
import signal
import subprocess
from contextlib import closing

from scripts.postgres import SUPERUSER, Postgres
from scripts.programs import find_rabbitmq
from scripts.rabbitmq import RabbitMQ, answers_amqp
from scripts.settings import ROOT

from .waiting import wait_for

SECONDS_TO_COME_UP = 60
SECONDS_TO_END = 30
# Should the tests be killed, the kernel ends their servers.
ENDING_WITH_US = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


class Server:
    """A process, its output in a file.

    Ends with the tests, however those end.
    """

    def __init__(self, name, folder, command, environment=None, user=None, is_ready=lambda: True):
        self.name = name
        self.command = command
        self.environment = environment or dict(os.environ)
        self.user = user
        self.is_ready = is_ready
        self.log = folder / f"{name}.log"
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*ENDING_WITH_US, *self.command],
                cwd=ROOT,
                env=self.environment,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def wait_until_ready(self):
        def ready():
            assert self.process.poll() is None, f"{self.name} ended: {self.output()}"
            assert self.is_ready(), f"{self.name} is not ready: {self.output()}"
            return True

        wait_for(ready, SECONDS_TO_COME_UP)

    def send(self, signal_number):
        self.process.send_signal(signal_number)

    def stop(self, signal_number=signal.SIGTERM):
        """Ends it, by force when asking doesn't help. Returns its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.send(signal_number)
        try:
            return self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class PostgresServer(Server):
    def __init__(self, settings):
        self.settings = settings
        self.postgres = Postgres(settings)
        self.postgres.prepare()
        super().__init__(
            "postgres",
            settings.folder,
            self.postgres.command(),
            user=self.postgres.account,
            is_ready=self.postgres.is_ready,
        )

    def stop(self, signal_number=signal.SIGINT):
        return super().stop(signal_number)

    def copy(self, settings, is_standby=False):
        """Another server with all that this one has, passwords too; a standby follows it from now on."""
        shutil.copytree(self.settings.folder / "secrets", settings.folder / "secrets")
        copy = Postgres(settings)
        copy.folder.mkdir(parents=True, exist_ok=True)
        if copy.account:
            shutil.chown(copy.folder, copy.account)
        source = f"host=127.0.0.1 port={self.settings.ports['POSTGRES_PORT']} user={SUPERUSER}"
        subprocess.run(
            [
                copy.programs / "pg_basebackup",
                *("--pgdata", copy.folder / "data", "--dbname", source, "--checkpoint=fast", "--no-sync"),
                *(["--write-recovery-conf"] if is_standby else []),
            ],
            user=copy.account,
            cwd="/",
            env={"PGPASSWORD": settings.secret(f"postgres-{SUPERUSER}")},
            check=True,
        )
        return PostgresServer(settings)

    def execute(self, statement):
        """The rows that the statement gives, as the superuser and in no transaction."""
        with closing(self.postgres.connect()) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


class RabbitMQServer(Server):
    """A node with its name service."""

    def __init__(self, settings):
        self.settings = settings
        rabbitmq = RabbitMQ(settings)
        rabbitmq.prepare()
        environment = {**os.environ, **rabbitmq.environment()}
        self.name_service = Server("epmd", settings.folder, rabbitmq.name_service_command(), environment)
        super().__init__(
            "rabbitmq",
            settings.folder,
            rabbitmq.command(),
            environment,
            is_ready=lambda: answers_amqp(settings.amqp_uri()),
        )

    def start(self):
        self.name_service.start()
        return super().start()

    def stop(self, signal_number=signal.SIGTERM):
        code = super().stop(signal_number)
        self.name_service.stop()
        return code

    def kill(self):
        code = super().kill()
        self.name_service.stop()
        return code

    def control(self, *arguments):
        """`rabbitmqctl` on this node; what it said."""
        command = [find_rabbitmq() / "rabbitmqctl", *arguments]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout
