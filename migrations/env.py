"""One environment for all services: `alembic -n NAME …` picks the models, the revisions and the database.

The database is NAME_DB_URI of the environment, as for the service itself.
"""

import importlib
import os
import warnings

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

# The models' modules bring it; it is no news to who migrates. See docs/decisions/nameko-and-eventlet.md.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")

service = context.config.config_ini_section
variable = f"{service.upper()}_DB_URI"
uri = os.environ.get(variable)
if not uri:
    raise SystemExit(
        f"{variable} is not set: the database to migrate, like postgresql+psycopg2://user:password@host/{service}_db."
    )

with create_engine(uri, poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=importlib.import_module(f"services.{service}").Base.metadata,
        # One that builds an index beside running services leaves its transaction.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
