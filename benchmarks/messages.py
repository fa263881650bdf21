"""The shop's messages: a call of one service, and a backlog of events."""

import signal

from benchmarks import load
from benchmarks.report import WARM_UP_SECONDS
from benchmarks.shop import scenario, seconds_for
from nameko_reliable.testing.waiting import wait_for

CALLS_AT_ONCE = 32
EVENTS = 2000
# Far above the ids of real orders.
FIRST_INVENTED_ORDER = 10**12
SENT = f"notifications WHERE order_id >= {FIRST_INVENTED_ORDER} AND status = 'sent'"


@scenario("rpc")
def rpc(shop, report):
    """products.health, one SELECT, called by a bare AMQP client."""
    report.title("RPC: products.health")
    for outstanding in (1, CALLS_AT_ONCE):

        def run(seconds, outstanding=outstanding):
            return load.rpc(shop.settings.amqp_uri(), "products", "health", outstanding, seconds)

        run(WARM_UP_SECONDS)
        report.measure(f"{outstanding} at once", lambda run=run: run(report.seconds))


@scenario("events")
def events(shop, report):
    """A backlog of order.created, from the outbox to notifications, and to mails.

    The orders do not exist: notifications does not check them. It is paused while the relay is measured, for less time
    than the broker's heartbeat timeout.
    """
    report.title(f"Events: a backlog of {EVENTS} order.created, step by step")
    shop.wait_until_settled()
    handlers = shop.replicas["notifications"]
    for replica in handlers:
        replica.send(signal.SIGSTOP)
    try:
        _fill_outbox(shop)
        wait_for(lambda: shop.count("orders", "outbox") < EVENTS, pause_seconds=0.001)
        left = shop.count("orders", "outbox")
        report.count("relayed", left, lambda: seconds_for(lambda: not shop.count("orders", "outbox")))
    finally:
        for replica in handlers:
            replica.send(signal.SIGCONT)
    report.count(
        "notifications stored, mails sent",
        EVENTS,
        lambda: seconds_for(lambda: shop.count("notifications", SENT) == EVENTS),
    )
    shop.sql("notifications", "DELETE FROM notifications WHERE order_id >= %s", FIRST_INVENTED_ORDER)


def _fill_outbox(shop):
    shop.sql(
        "orders",
        """
        INSERT INTO outbox (event_id, event_name, key, payload)
        SELECT id, 'order.created', order_id, jsonb_build_object(
            'event_id', id, 'timestamp', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), 'version', 1,
            'order_id', order_id, 'sequence', 1, 'user_id', 1, 'user_email', 'customer@forage.example',
            'email_verified', true,
            'status', 'pending', 'total_amount', '9.90', 'reservation_id', gen_random_uuid(),
            'items', jsonb_build_array(jsonb_build_object('product_id', 1, 'product_name', 'Chanterelle',
                'product_price', '9.90', 'quantity', 1, 'subtotal', '9.90')))
        FROM (SELECT gen_random_uuid() AS id, %s + n AS order_id FROM generate_series(1, %s) AS n) AS made_up
        """,
        FIRST_INVENTED_ORDER,
        EVENTS,
    )
