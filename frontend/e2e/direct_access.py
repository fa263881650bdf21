"""Direct access to a running shop's databases and queues, for the browser tests. The environment has its settings.

python direct_access.py sql orders "UPDATE …"
python direct_access.py message evt-orders-order.created--notifications.confirm_order "no JSON"
"""

import os
import sys

import psycopg2
from kombu import Connection


def sql(service, statement):
    uri = os.environ[f"{service.upper()}_DB_URI"].replace("+psycopg2", "")
    with psycopg2.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        assert cursor.rowcount == 1, f"{cursor.rowcount} rows"


def message(queue, body):
    """Send a raw body to a queue, with the properties that the relay sets."""
    with Connection(os.environ["AMQP_URI"]) as connection, connection.Producer() as producer:
        producer.publish(body, routing_key=queue, content_type="application/json", delivery_mode=2)


if __name__ == "__main__":
    {"sql": sql, "message": message}[sys.argv[1]](*sys.argv[2:])
