"""A private PostgreSQL and a private RabbitMQ node, beside any others on this machine.

    postgres = PostgresServer(Postgres(folder / "postgres", free_port(), password, is_throwaway=True), folder)
    postgres.start().wait_until_ready()
    postgres.execute("CREATE DATABASE bakery")
    …
    postgres.stop()

`Postgres` and `RabbitMQ` say how each is run: a supervisor of your own may run their commands. `PostgresServer` and
`RabbitMQServer` run them as child processes, which end with this one, however that ends.
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
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from nameko_reliable.testing.waiting import wait_for

POSTGRES_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
# The folders of RabbitMQ's own scripts. Debian's wrapper on the PATH insists on its own user and folders.
RABBITMQ_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
)
SUPERUSER = "postgres"
# Where a server's folder is that its account can't reach at its own place.
REACHABLE_FOLDER = Path("/var/lib/nameko-reliable")
# For tests only: what a crash of the machine would lose is gone anyway.
UNSAFE_BUT_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
# Erlang's schedulers would otherwise spin while they wait, which a small machine feels.
NO_BUSY_WAITING = "+sbwt none +sbwtdcpu none +sbwtdio none"
LOOPBACK_ALONE = "-kernel inet_dist_use_interface {127,0,0,1}"
SECONDS_TO_COME_UP = 60
SECONDS_TO_END = 30
# Should this process be killed, the kernel ends its servers.
ENDING_WITH_US = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


class CannotStart(Exception):
    """Carries the one sentence that the person at the terminal needs."""


class Postgres:
    """One server on the loopback address.

    folder: where its data go. password: the superuser's. is_throwaway: nothing needs to outlive a crash of the
    machine.
    """

    def __init__(self, folder, port, password, is_throwaway=False):
        self.port, self.password, self.is_throwaway = port, password, is_throwaway
        self.programs = find_postgres()
        if self.programs is None:
            raise CannotStart("PostgreSQL must be installed first: there is no initdb.")
        self.account = account()
        self.folder = reachable(folder, self.account)

    def prepare(self):
        """Makes the data folder, unless it is there. Whole or not at all: an interrupted try is begun again."""
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

    def command(self):
        options = [
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            # Over TCP alone: a socket's path may have 107 characters at most.
            "unix_socket_directories=",
            "max_connections=300",
            "log_line_prefix=",
            "log_checkpoints=off",
            # No ERROR: it is the client's to report, and would show what the statement had in it, hashes too.
            "log_min_messages=log",
            "log_min_error_statement=panic",
            *(UNSAFE_BUT_FAST if self.is_throwaway else ()),
        ]
        words = [str(self.programs / "postgres"), "-D", str(self.folder / "data")]
        return words + [word for option in options for word in ("-c", option)]

    def uri(self, database, role=SUPERUSER, password=None):
        """SQLAlchemy's address of a database, the superuser's by default."""
        return f"postgresql+psycopg2://{role}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def connect(self):
        """As the superuser, to the database of its name."""
        import psycopg2

        return psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=SUPERUSER,
            password=self.password,
            dbname="postgres",
            connect_timeout=2,
        )

    def is_ready(self):
        import psycopg2

        try:
            self.connect().close()
        except psycopg2.OperationalError:
            return False
        return True


class RabbitMQ:
    """One node: its own cookie, name service, ports, data and logs.

    user: the account's name, and the node's. management_port: without one there is neither page nor HTTP API.
    """

    def __init__(self, folder, port, password, user="test", management_port=None):
        if not (find_rabbitmq() and shutil.which("epmd")):
            raise CannotStart("RabbitMQ must be installed first, and Erlang's epmd.")
        self.folder, self.port, self.password = folder, port, password
        self.user, self.management_port = user, management_port
        # Nobody types these two, so any free one will do.
        self.name_service_port, self.distribution_port = free_port(), free_port()

    def prepare(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        plugins = "rabbitmq_management" if self.management_port else ""
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            write_private(cookie, secrets.token_hex(24))
        # The account is made on the node's first start, and kept with its data.
        config = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            f"default_user = {self.user}",
            f"default_pass = {self.password}",
            "log.console = true",
            "log.console.level = warning",
            "log.console.use_colors = off",
            # The supervisor of a client reports that it was killed.
            "log.connection.level = error",
            "log.file = false",
        ]
        if self.management_port:
            config += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {self.management_port}"]
        write_private(self.folder / "rabbitmq.conf", "\n".join(config) + "\n")

    def uri(self, virtual_host=""):
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}/{virtual_host}"

    def command(self):
        return [str(find_rabbitmq() / "rabbitmq-server")]

    def name_service_command(self):
        """In the foreground, so that it is watched like the rest and ends with them."""
        return [shutil.which("epmd"), "-port", str(self.name_service_port)]

    def environment(self):
        return {
            "HOME": str(self.folder),  # where Erlang keeps the cookie
            "ERL_CRASH_DUMP": str(self.folder / "erl_crash.dump"),
            "ERL_EPMD_PORT": str(self.name_service_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # `localhost`, so that the data outlives a change of the machine's name.
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
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{NO_BUSY_WAITING} {LOOPBACK_ALONE}",
            "RABBITMQ_LOG": "warning,-color",
            # Then the script becomes the node, with no shell between us and it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }


class Server:
    """A process, its output in `FOLDER/NAME.log`. It ends with this one, however that ends."""

    def __init__(self, name, folder, command, environment=None, user=None, is_ready=lambda: True, cwd=None):
        self.name = name
        self.command = command
        self.environment = environment or dict(os.environ)
        self.user = user
        self.is_ready = is_ready
        self.cwd = cwd
        self.log = folder / f"{name}.log"
        self.process: Any = None  # subprocess.Popen, once it was started

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*ENDING_WITH_US, *self.command],
                cwd=self.cwd,
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
    """folder: of its log."""

    def __init__(self, postgres, folder):
        self.postgres = postgres
        postgres.prepare()
        super().__init__(
            "postgres", folder, postgres.command(), user=postgres.account, is_ready=postgres.is_ready, cwd="/"
        )

    def stop(self, signal_number=signal.SIGINT):
        # At SIGTERM it would wait for its clients to go.
        return super().stop(signal_number)

    def copy(self, folder, is_standby=False):
        """Another server with all that this one has, passwords too; a standby follows it from now on."""
        password = self.postgres.password
        # PostgreSQL's account passes through.
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

    def execute(self, statement):
        """The rows that the statement gives, as the superuser and in no transaction."""
        with closing(self.postgres.connect()) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


class RabbitMQServer(Server):
    """A node with its name service. folder: of their logs."""

    def __init__(self, rabbitmq, folder):
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


def answers_amqp(uri):
    from kombu import Connection

    transport = Connection(uri, connect_timeout=2).transport
    try:
        # One try: kombu's own `connect` would sleep before its second.
        transport.close_connection(transport.establish_connection())
    except OSError:
        return False
    return True


def find_postgres():
    """The folder of PostgreSQL's programs, the newest release first; None without any."""
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else newest(POSTGRES_FOLDERS, "initdb")


def find_rabbitmq():
    """The folder of RabbitMQ's scripts; None without any."""
    return newest(RABBITMQ_FOLDERS, "rabbitmq-server")


def newest(patterns, program):
    """Of the folders that match and have the program, the one with the highest version in its name; or None."""
    folders = [folder for pattern in patterns for folder in Path("/").glob(pattern[1:]) if (folder / program).exists()]
    return max(folders, key=lambda folder: [int(number) for number in re.findall(r"\d+", str(folder))], default=None)


def account():
    """PostgreSQL refuses to run as root: then the name of another account, else None for our own."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def reachable(folder, account):
    """The folder, or for one that the account can't reach, as below /root, the one elsewhere that it is a link to."""
    if account is None or can_reach(account, folder.parent):
        return folder
    if not folder.is_symlink():
        elsewhere = REACHABLE_FOLDER / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        # Whatever lies there belongs to a folder that has been deleted since.
        shutil.rmtree(elsewhere, ignore_errors=True)
        elsewhere.mkdir(parents=True)
        # Whatever the umask is: all accounts pass through.
        REACHABLE_FOLDER.chmod(0o711)
        folder.symlink_to(elsewhere)
    return folder.resolve()


def can_reach(user, folder):
    return subprocess.run(["test", "-x", folder], user=user, cwd="/").returncode == 0


def free_port():
    """Below those that the kernel takes for outgoing connections, one of which might have it before we listen."""
    for port in random.sample(range(15000, 32000), 1000):
        with suppress(OSError):
            bind(port)
            return port
    raise CannotStart("No free port was found between 15000 and 32000.")


def bind(port):
    """Raises OSError when the port is taken."""
    with socket.socket() as probe:
        # As servers do it: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def write_private(path, text):
    """Nobody else may read it, at any moment."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
