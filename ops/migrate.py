"""Brings the databases of all services up to date: `alembic -n SERVICE upgrade head` for each, in one process.

A database that a newer release has migrated stays as it is: that release was rolled back, and its schema also works
with the release before it.
"""

import os
import warnings

from alembic.config import Config
from alembic.config import main as alembic
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

# From the import of nameko_reliable.settings. See docs/decisions/0001-nameko-and-eventlet.md.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")

from contracts.settings import ShopSettings  # noqa: E402
from contracts.types import SERVICES  # noqa: E402
from nameko_reliable.postgres import WRITABLE_HOST, database_url  # noqa: E402
from nameko_reliable.settings import checked  # noqa: E402


def database_uris(*services: str) -> dict[str, str]:
    """{service: URI} from SERVICE_DB_URI of the environment. Raises SystemExit with all missing and invalid ones."""
    uris = {service: os.environ.get(f"{service.upper()}_DB_URI") for service in services}
    needs = [f"DB_URIS.{service}" for service in services]
    checked_uris: dict[str, str] = checked(ShopSettings(only=["DB_URIS"]), {"DB_URIS": uris}, needs)["DB_URIS"]
    return checked_uris


def newer_revision(service: str, uri: str) -> str | None:
    """The database's revision, if its number is higher than all of this release's, else None."""
    head = ScriptDirectory.from_config(Config("alembic.ini", ini_section=service)).get_current_head()
    with create_engine(database_url(uri), poolclass=NullPool, connect_args=WRITABLE_HOST).connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    return revision if revision and revision.isdigit() and int(revision) > int(head or 0) else None


if __name__ == "__main__":
    for service, uri in database_uris(*SERVICES).items():
        if revision := newer_revision(service, uri):
            print(f"{service}: left at revision {revision}, which a newer release has made", flush=True)
        else:
            alembic(["-n", service, "upgrade", "head"])
