"""A private PostgreSQL server and a private RabbitMQ node, beside any others on this machine.

    postgres = PostgresServer(Postgres(folder / "postgres", free_port(), password, is_throwaway=True), folder)
    postgres.start().wait_until_ready()
    postgres.execute("CREATE DATABASE bakery")
    …
    postgres.stop()

`Postgres` and `RabbitMQ` hold the configuration and the commands, which a supervisor of your own may run.
`PostgresServer` and `RabbitMQServer` run them as child processes, which end with this process even if it is killed.
"""

import hashlib
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

from nameko_reliable.testing.waiting import wait_for

POSTGRES_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
# The folders of RabbitMQ's own scripts. Debian's wrapper on the PATH works only with its own user and folders.
RABBITMQ_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
)
SUPERUSER = "postgres"
# Holds the folders of servers whose account can't reach the given folder.
REACHABLE_FOLDER = Path("/var/lib/nameko-reliable")
# For tests only: a crash of the machine may lose data.
UNSAFE_BUT_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
# Otherwise Erlang's schedulers spin while they wait, which slows down a small machine.
NO_BUSY_WAITING = "+sbwt none +sbwtdcpu none +sbwtdio none"
LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"
SECONDS_TO_COME_UP = 60
SECONDS_TO_END = 30
# If this process is killed, the kernel ends its servers.
END_WITH_PARENT = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


class CannotStart(Exception):
    """Its message is one sentence for the user at the terminal."""


class Postgres:
    """One server on the loopback address.

    folder: for its data. password: the superuser's. is_throwaway: a crash of the machine may lose the data.
    """

    def __init__(self, folder: Path, port: int, password: str, is_throwaway: bool = False) -> None:
        self.port, self.password, self.is_throwaway = port, password, is_throwaway
        programs = find_postgres()
        if programs is None:
            raise CannotStart("PostgreSQL must be installed first: there is no initdb.")
        self.programs = programs
        self.account = account()
        self.folder = reachable(folder, self.account)

    def prepare(self) -> None:
        """Make the data folder unless it exists. After an interruption, the next call starts again."""
        data, unfinished = self.folder / "data", self.folder / "unfinished"
        if data.exists():
            return
        shutil.rmtree(unfinished, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        password = self.folder / "password"
        write_private(password, self.password)
        if self.account:
            shutil.chown(self.folder, self.account)
            shutil.chown(password, self.account)
        options = ["--auth=scram-sha-256", f"--pwfile={password}", f"--username={SUPERUSER}"]
        locale = ["--encoding=UTF8", "--locale=C.UTF-8"]
        done = subprocess.run(
            [self.programs / "initdb", "--pgdata", unfinished, "--no-sync", *options, *locale],
            user=self.account,
            cwd="/",
            capture_output=True,
            text=True,
        )
        password.unlink()
        if done.returncode:
            raise CannotStart(f"PostgreSQL could not make its data folder: {done.stderr.strip()}")
        unfinished.rename(data)

    def command(self) -> list[str]:
        options = [
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            # Only TCP: the path of a Unix socket may have at most 107 characters.
            "unix_socket_directories=",
            "max_connections=300",
            "log_line_prefix=",
            "log_checkpoints=off",
            # No errors of statements: clients report them, and the log would show the values in them, secrets too.
            "log_min_messages=log",
            "log_min_error_statement=panic",
            *(UNSAFE_BUT_FAST if self.is_throwaway else ()),
        ]
        words = [str(self.programs / "postgres"), "-D", str(self.folder / "data")]
        return words + [word for option in options for word in ("-c", option)]

    def uri(self, database: str, role: str = SUPERUSER, password: str | None = None) -> str:
        """The address of a database for SQLAlchemy, by default for the superuser."""
        return f"postgresql+psycopg2://{role}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def connect(self) -> Any:
        """A psycopg2 connection of the superuser, to the database `postgres`."""
        import psycopg2

        return psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=SUPERUSER,
            password=self.password,
            dbname="postgres",
            connect_timeout=2,
        )

    def is_ready(self) -> bool:
        import psycopg2

        try:
            self.connect().close()
        except psycopg2.OperationalError:
            return False
        return True


class RabbitMQ:
    """One node with its own cookie, name service, ports, data and logs.

    user: the name of the account and of the node. management_port: None starts no management page and no HTTP API.
    """

    def __init__(
        self, folder: Path, port: int, password: str, user: str = "test", management_port: int | None = None
    ) -> None:
        if not (find_rabbitmq() and shutil.which("epmd")):
            raise CannotStart("RabbitMQ must be installed first, and Erlang's epmd.")
        self.folder, self.port, self.password = folder, port, password
        self.user, self.management_port = user, management_port
        # Only the node's own programs use these two.
        self.name_service_port, self.distribution_port = free_port(), free_port()

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        plugins = "rabbitmq_management" if self.management_port else ""
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            write_private(cookie, secrets.token_hex(24))
        # The node creates the account on its first start, and keeps it with its data.
        config = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            f"default_user = {self.user}",
            f"default_pass = {self.password}",
            "log.console = true",
            "log.console.level = warning",
            "log.console.use_colors = off",
            # Otherwise each killed client is a warning in the log.
            "log.connection.level = error",
            "log.file = false",
        ]
        if self.management_port:
            config += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {self.management_port}"]
        write_private(self.folder / "rabbitmq.conf", "\n".join(config) + "\n")

    def uri(self, virtual_host: str = "") -> str:
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}/{virtual_host}"

    def command(self) -> list[str]:
        return [f"{find_rabbitmq()}/rabbitmq-server"]

    def name_service_command(self) -> list[str]:
        """epmd in the foreground, so that a supervisor can watch and end it."""
        return [str(shutil.which("epmd")), "-port", str(self.name_service_port)]

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),  # Erlang reads the cookie there
            "ERL_CRASH_DUMP": str(self.folder / "erl_crash.dump"),
            "ERL_EPMD_PORT": str(self.name_service_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # `localhost`, so that a change of the machine's name does not matter.
            "RABBITMQ_NODENAME": f"{self.user}@localhost",
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{NO_BUSY_WAITING} {LOOPBACK_ONLY}",
            "RABBITMQ_LOG": "warning,-color",
            # With this the script replaces itself by the node, so no shell remains as its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
        }


class Server:
    """A child process with its output in `FOLDER/NAME.log`. It ends with this process, even if that is killed."""

    def __init__(
        self,
        name: str,
        folder: Path,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        is_ready: Callable[[], object] = lambda: True,
        cwd: str | Path | None = None,
    ) -> None:
        self.name = name
        self.command = command
        self.environment = environment or dict(os.environ)
        self.user = user
        self.is_ready = is_ready
        self.cwd = cwd
        self.log = folder / f"{name}.log"
        self.process: Any = None  # subprocess.Popen, once it was started

    def start(self) -> Self:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*END_WITH_PARENT, *self.command],
                cwd=self.cwd,
                env=self.environment,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"{self.name} ended: {self.output()}"
            assert self.is_ready(), f"{self.name} is not ready: {self.output()}"
            return True

        wait_for(ready, SECONDS_TO_COME_UP)

    def send(self, signal_number: int) -> None:
        self.process.send_signal(signal_number)

    def stop(self, signal_number: int = signal.SIGTERM) -> int | None:
        """Send the signal, and kill the process if it does not end in time. Returns its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.send(signal_number)
        try:
            return int(self.process.wait(SECONDS_TO_END))
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        if self.process.poll() is None:
            self.process.kill()
        return int(self.process.wait())

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class PostgresServer(Server):
    """folder: for its log."""

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self.postgres = postgres
        postgres.prepare()
        super().__init__(
            "postgres", folder, postgres.command(), user=postgres.account, is_ready=postgres.is_ready, cwd="/"
        )

    def stop(self, signal_number: int = signal.SIGINT) -> int | None:
        # On SIGTERM it would wait until its clients disconnect.
        return super().stop(signal_number)

    def copy(self, folder: Path, is_standby: bool = False) -> "PostgresServer":
        """A copy of this server, with its data and passwords. A standby replicates it from now on."""
        password = self.postgres.password
        # PostgreSQL's account must be able to pass through.
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        copy = Postgres(folder / "postgres", free_port(), password, self.postgres.is_throwaway)
        copy.folder.mkdir(parents=True, exist_ok=True)
        if copy.account:
            shutil.chown(copy.folder, copy.account)
        source = f"host=127.0.0.1 port={self.postgres.port} user={SUPERUSER}"
        subprocess.run(
            [
                copy.programs / "pg_basebackup",
                *("--pgdata", copy.folder / "data", "--dbname", source, "--checkpoint=fast", "--no-sync"),
                *(["--write-recovery-conf"] if is_standby else []),
            ],
            user=copy.account,
            cwd="/",
            env={"PGPASSWORD": password},
            check=True,
        )
        return PostgresServer(copy, folder)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run the statement as the superuser, in autocommit. Returns its rows."""
        with closing(self.postgres.connect()) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []


class RabbitMQServer(Server):
    """A node with its name service. folder: for their logs."""

    def __init__(self, rabbitmq: RabbitMQ, folder: Path) -> None:
        self.rabbitmq = rabbitmq
        rabbitmq.prepare()
        environment = {**os.environ, **rabbitmq.environment()}
        self.name_service = Server("epmd", folder, rabbitmq.name_service_command(), environment)
        super().__init__(
            "rabbitmq",
            folder,
            rabbitmq.command(),
            environment,
            is_ready=lambda: answers_amqp(rabbitmq.uri()),
        )

    def start(self) -> Self:
        self.name_service.start()
        return super().start()

    def stop(self, signal_number: int = signal.SIGTERM) -> int | None:
        code = super().stop(signal_number)
        self.name_service.stop()
        return code

    def kill(self) -> int:
        code = super().kill()
        self.name_service.stop()
        return code

    def control(self, *arguments: str) -> str:
        """The output of `rabbitmqctl` on this node."""
        command = [f"{find_rabbitmq()}/rabbitmqctl", *arguments]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout


def answers_amqp(uri: str) -> bool:
    from kombu import Connection

    transport = Connection(uri, connect_timeout=2).transport
    try:
        # Only one attempt: kombu's own `connect` would sleep and try again.
        transport.close_connection(transport.establish_connection())
    except OSError:
        return False
    return True


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs: that on the PATH, else that of the newest release. None if there is none."""
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else newest(POSTGRES_FOLDERS, "initdb")


def find_rabbitmq() -> Path | None:
    """The folder of RabbitMQ's scripts. None if there is none."""
    return newest(RABBITMQ_FOLDERS, "rabbitmq-server")


def newest(patterns: Iterable[str], program: str) -> Path | None:
    """The folder with the highest version in its name, of those that match and have the program; or None."""
    folders = [folder for pattern in patterns for folder in Path("/").glob(pattern[1:]) if (folder / program).exists()]
    return max(folders, key=lambda folder: [int(number) for number in re.findall(r"\d+", str(folder))], default=None)


def account() -> str | None:
    """The account for PostgreSQL, which refuses to run as root. None means our own account."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def reachable(folder: Path, account: str | None) -> Path:
    """The folder if the account can reach it, which is not so below /root. Else another folder, with a link to it."""
    if account is None or can_reach(account, folder.parent):
        return folder
    if not folder.is_symlink():
        elsewhere = REACHABLE_FOLDER / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        # Its old contents belong to a folder that has been deleted.
        shutil.rmtree(elsewhere, ignore_errors=True)
        elsewhere.mkdir(parents=True)
        # All accounts may pass through, even with a strict umask.
        REACHABLE_FOLDER.chmod(0o711)
        folder.symlink_to(elsewhere)
    return folder.resolve()


def can_reach(user: str, folder: Path) -> bool:
    return subprocess.run(["test", "-x", folder], user=user, cwd="/").returncode == 0


def free_port() -> int:
    """A free port below the kernel's range for outgoing connections, which might take it before the server listens."""
    for port in random.sample(range(15000, 32000), 1000):
        with suppress(OSError):
            bind(port)
            return port
    raise CannotStart("No free port was found between 15000 and 32000.")


def bind(port: int) -> None:
    """Raises OSError if the port is taken."""
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def write_private(path: Path, text: str) -> None:
    """Write a file that no other account can read at any moment."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
