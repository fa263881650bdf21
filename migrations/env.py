"""One environment for all services: `alembic -n NAME …` selects the models, the revisions and the database.

The database is NAME_DB_URI of the environment, as for the service itself.
"""

import importlib

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from nameko_reliable.postgres import WRITABLE_HOST, database_url
from ops.migrate import database_uris

service = context.config.config_ini_section
url = database_url(database_uris(service)[service])

with create_engine(url, poolclass=NullPool, connect_args=WRITABLE_HOST).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=importlib.import_module(f"services.{service}_models").Base.metadata,
        # A transaction for each revision. A revision that builds an index concurrently leaves it.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
