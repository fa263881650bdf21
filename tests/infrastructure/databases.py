"""A fresh database for whoever asks, as a copy of one that was migrated once."""

import os
import re
import secrets
import subprocess
import sys
from itertools import count

from contracts.types import SERVICES
from dev.servers import make_databases
from dev.settings import ROOT


class Databases:
    def __init__(self, server):
        self.server = server
        self.passwords = {service: secrets.token_hex(16) for service in SERVICES}
        make_databases(server.postgres, self.passwords)
        self._migrated = False
        self._numbers = count(1)

    def new(self, service):
        """The URI of a new database, migrated when it is for a service of the shop, else empty."""
        name = f"test_{next(self._numbers)}_{service}"
        if service in SERVICES:
            self._migrate_once()
            self.server.execute(f'CREATE DATABASE "{name}" TEMPLATE {service}_db OWNER {service}')
            return self._uri(service, name)
        self.server.execute(f'CREATE DATABASE "{name}"')
        return self.server.postgres.uri(name)

    def new_empty(self, service, statements):
        """The URI of a new database of the service's, for a backup to be restored into.

        statements: what makes orders_db.
        """
        self._migrate_once()
        name = f"test_{next(self._numbers)}_{service}_restored"
        for statement in statements.split(";")[:-1]:
            self.server.execute(re.sub(r"\borders\b", service, re.sub(r"\borders_db\b", name, statement)))
        return self._uri(service, name)

    def drop(self, uri):
        name = uri.rpartition("/")[2]
        self.server.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _uri(self, service, name):
        return self.server.postgres.uri(name, service, self.passwords[service])

    def _migrate_once(self):
        """All services' at once: most of it is Python coming up."""
        if self._migrated:
            return
        uris = {f"{service.upper()}_DB_URI": self._uri(service, f"{service}_db") for service in SERVICES}
        done = subprocess.run(
            [sys.executable, "-m", "ops.migrate"],
            cwd=ROOT,
            env={**os.environ, **uris},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self._migrated = True
