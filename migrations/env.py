"""One environment for all services: `alembic -n NAME …` picks the models, the revisions and the database.

The database is NAME_DB_URI of the environment, as for the service itself.
"""

import importlib

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from scripts.migrate import database_uris

service = context.config.config_ini_section

with create_engine(database_uris(service)[service], poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=importlib.import_module(f"services.{service}").Base.metadata,
        # One that builds an index beside running services leaves its transaction.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
