"""Brings the databases of all services up to date: `alembic -n SERVICE upgrade head` for each, in one process."""

from alembic.config import main as alembic

from scripts.settings import SERVICES

if __name__ == "__main__":
    for service in SERVICES:
        alembic(["-n", service, "upgrade", "head"])
