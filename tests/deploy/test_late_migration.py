"""Where the databases come with the release, the processes are there before their tables are."""

import os
import subprocess
from contextlib import suppress
from urllib.request import urlopen

import psycopg2

from scripts.settings import ROOT, free_port
from tests.infrastructure.waiting import wait_for


def is_ready(port):
    with suppress(OSError):
        return urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200


def test_a_service_waits_for_its_tables_and_then_works(processes, config, rpc):
    uri = config["DB_URIS"]["orders"]
    with psycopg2.connect(uri.replace("+psycopg2", "")) as connection:
        connection.cursor().execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    port = free_port()
    processes.start("services.orders", METRICS_PORT=str(port))
    wait_for(lambda: is_ready(port), seconds=30)

    subprocess.run(
        [ROOT / ".venv" / "bin" / "alembic", "-n", "orders", "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, "ORDERS_DB_URI": uri},
        check=True,
    )

    assert rpc.orders.list_orders(user_id=1) == {"orders": [], "total": 0}
    assert is_ready(port)
