"""The private PostgreSQL and RabbitMQ of one copy of the shop: a database and a role for each service.

A role can open only its own service's database.
"""

from contextlib import closing

from contracts.types import SERVICES
from dev.settings import MANAGEMENT
from nameko_reliable.testing.servers import SUPERUSER, Postgres, RabbitMQ


def postgres_of(settings):
    password = settings.secret(f"postgres-{SUPERUSER}")
    return Postgres(settings.folder / "postgres", settings.ports["POSTGRES_PORT"], password, settings.for_tests)


def rabbitmq_of(settings):
    return RabbitMQ(
        settings.folder / "rabbitmq",
        settings.ports["RABBITMQ_PORT"],
        settings.secret("rabbitmq"),
        user="forage",
        management_port=settings.ports.get(MANAGEMENT),
    )


def passwords_of(settings):
    """{service: the password of its role}"""
    return {service: settings.secret(f"postgres-{service}") for service in SERVICES}


def make_databases(postgres, passwords):
    """Makes the missing databases and roles. passwords: {service: the password of its role}."""
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SELECT datname FROM pg_database")
        existing = {name for (name,) in cursor.fetchall()}
        for service, password in passwords.items():
            if f"{service}_db" not in existing:
                cursor.execute(f"DROP ROLE IF EXISTS {service}")
                cursor.execute(f"CREATE ROLE {service} LOGIN PASSWORD %s", [password])
                cursor.execute(f"CREATE DATABASE {service}_db OWNER {service}")
                cursor.execute(f"REVOKE CONNECT ON DATABASE {service}_db FROM PUBLIC")
