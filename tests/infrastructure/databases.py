"""Databases for tests. Each is a copy of a database that was migrated once; only its own service can open it."""

import os
import re
import secrets
import subprocess
import sys

from contracts.types import SERVICES
from dev.servers import make_databases
from dev.settings import ROOT
from nameko_reliable.testing import databases


class Databases(databases.Databases):
    def __init__(self, server):
        # Databases of test services start without tables.
        super().__init__(server, make_tables=lambda service, engine: None)
        self.passwords = {service: secrets.token_hex(16) for service in SERVICES}
        make_databases(server.postgres, self.passwords)
        self._migrated = False

    def new(self, service):
        """The URI of a new database: migrated for a service of the shop, empty for any other name."""
        if service not in SERVICES:
            return super().new(service)
        self._migrate_once()
        return self._uri(service, self.create(service, f"TEMPLATE {service}_db OWNER {service}"))

    def new_empty(self, service, statements):
        """The URI of a new, empty database of a service, into which a backup can be restored.

        statements: the SQL that makes orders_db.
        """
        self._migrate_once()
        name = f"test_{service}_{secrets.token_hex(4)}"
        for statement in statements.split(";")[:-1]:
            self.server.execute(re.sub(r"\borders\b", service, re.sub(r"\borders_db\b", name, statement)))
        return self._uri(service, name)

    def _uri(self, service, name):
        return self.server.postgres.uri(name, service, self.passwords[service])

    def _migrate_once(self):
        """Migrates all services in one run, since most of its time is Python's start."""
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
