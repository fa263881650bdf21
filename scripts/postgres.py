"""A private PostgreSQL: one server on the loopback address, a database and a role for each service.

A service's role opens that service's database alone.
"""

import hashlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from scripts.programs import find_postgres
from scripts.settings import SERVICES, CannotStart, write_private

SUPERUSER = "postgres"
# For tests only: what a crash of the machine would lose is gone anyway.
UNSAFE_BUT_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class Postgres:
    def __init__(self, settings):
        self.settings = settings
        self.programs = find_postgres()
        self.account = account()
        self.folder = self._folder()

    def _folder(self):
        """Below our own folder, unless PostgreSQL's account has no way there, as into /root."""
        folder = self.settings.folder / "postgres"
        if self.account is None or can_reach(self.account, self.settings.folder):
            return folder
        name = hashlib.sha256(str(self.settings.folder).encode()).hexdigest()[:16]
        elsewhere = Path("/var/lib/forage") / name
        if not folder.is_symlink():
            # Whatever lies there belongs to a folder that has been deleted since.
            shutil.rmtree(elsewhere, ignore_errors=True)
            elsewhere.mkdir(parents=True)
            folder.symlink_to(elsewhere)
        return elsewhere

    def prepare(self):
        """Makes the data folder, unless it is there. Whole or not at all: an interrupted try is begun anew."""
        data, unfinished = self.folder / "data", self.folder / "unfinished"
        if data.exists():
            return
        shutil.rmtree(unfinished, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        password = self.folder / "password"
        write_private(password, self.settings.secret(f"postgres-{SUPERUSER}"))
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
            f"port={self.settings.ports['POSTGRES_PORT']}",
            # Over TCP alone: a socket's path may have 107 characters at most.
            "unix_socket_directories=",
            "max_connections=300",
            "log_line_prefix=",
            "log_checkpoints=off",
            # No ERROR: it is the client's to tell, and would show what the statement had in it, hashes too.
            "log_min_messages=log",
            "log_min_error_statement=panic",
            *(UNSAFE_BUT_FAST if self.settings.for_tests else ()),
        ]
        words = [str(self.programs / "postgres"), "-D", str(self.folder / "data")]
        return words + [word for option in options for word in ("-c", option)]

    def connect(self):
        import psycopg2

        return psycopg2.connect(
            host="127.0.0.1",
            port=self.settings.ports["POSTGRES_PORT"],
            user=SUPERUSER,
            password=self.settings.secret(f"postgres-{SUPERUSER}"),
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

    def make_databases(self):
        connection = self.connect()
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("SELECT datname FROM pg_database")
        existing = {name for (name,) in cursor.fetchall()}
        for service in SERVICES:
            if f"{service}_db" not in existing:
                cursor.execute(f"DROP ROLE IF EXISTS {service}")
                cursor.execute(
                    f"CREATE ROLE {service} LOGIN PASSWORD %s", [self.settings.secret(f"postgres-{service}")]
                )
                cursor.execute(f"CREATE DATABASE {service}_db OWNER {service}")
                cursor.execute(f"REVOKE CONNECT ON DATABASE {service}_db FROM PUBLIC")
        connection.close()


def account():
    """PostgreSQL refuses to run as root: then it is somebody else, else None for ourselves."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def can_reach(user, folder):
    return subprocess.run(["test", "-x", folder], user=user, cwd="/").returncode == 0
