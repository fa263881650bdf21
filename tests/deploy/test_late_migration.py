"""If the release also makes the databases, the processes start before their tables exist."""

import os
import subprocess
from contextlib import closing

import psycopg2
import pytest

from contracts.types import SERVICES
from dev.settings import ROOT
from nameko_reliable.testing.servers import free_port
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.processes import is_ready

# Calls that read tables. A service that is not listed here is only asked for its health.
READS = {
    "users": lambda rpc: rpc.users.list_users()["total"],
    "products": lambda rpc: rpc.products.list_products()["total"],
    "orders": lambda rpc: rpc.orders.list_orders(user_id=1)["total"],
    "notifications": lambda rpc: rpc.notifications.list_notifications()["total"],
}


def works(rpc, service):
    if service in READS:
        return READS[service](rpc) == 0
    return getattr(rpc, service).health() == {"status": "up"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_waits_for_its_tables_and_then_works(processes, config, rpc, service):
    uri = config["DB_URIS"][service]
    with closing(psycopg2.connect(uri.replace("+psycopg2", ""))) as connection, connection:
        connection.cursor().execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    port = free_port()
    processes.start(f"services.{service}", METRICS_PORT=str(port))
    wait_for(lambda: is_ready(port))

    subprocess.run(
        [ROOT / ".venv" / "bin" / "alembic", "-n", service, "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, f"{service.upper()}_DB_URI": uri},
        check=True,
    )

    assert works(rpc, service)
    assert is_ready(port)
