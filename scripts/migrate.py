"""Brings the databases of all services up to date: `alembic -n SERVICE upgrade head` for each, in one process.

A database that a newer release has migrated stays as it is: that release was rolled back, and what it has added fits
the release before it.
"""

import os

from alembic.config import Config
from alembic.config import main as alembic
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from scripts.settings import SERVICES


def newer_revision(service):
    """The database's, if it comes after all of this release's: they are numbered. Else None."""
    uri = os.environ.get(f"{service.upper()}_DB_URI")
    if not uri:
        return None  # Alembic's environment says what to set.
    head = ScriptDirectory.from_config(Config("alembic.ini", ini_section=service)).get_current_head()
    with create_engine(uri, poolclass=NullPool).connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    return revision if revision and revision.isdigit() and int(revision) > int(head) else None


if __name__ == "__main__":
    for service in SERVICES:
        if revision := newer_revision(service):
            print(f"{service}: left at revision {revision}, which a newer release has made", flush=True)
        else:
            alembic(["-n", service, "upgrade", "head"])
