"""A shop whose processes belong to two releases, with one broker and the same databases."""

import re
import signal
import subprocess
import time
from contextlib import contextmanager
from functools import partial

import eventlet
import requests

from contracts.types import SERVICES
from nameko_reliable.testing.servers import SECONDS_TO_END, free_port
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.processes import Processes, is_ready
from tests.shop import Shop

OLD, NEW = "old", "new"
PARTS = (*SERVICES, "gateway")
# Orders with higher ids do not exist; only their events do.
FIRST_INVENTED_ORDER = 10**9
# Those of broadcast handlers end with a random id.
DURABLE_QUEUE = re.compile("evt-.*(?<!-[0-9a-f]{32})")
MESSAGE_ID = re.compile(rb"^Message-ID: *(\S+)", re.MULTILINE)


def replicas(release, *parts):
    """One replica of each part, by default of all parts."""
    return {(release, part) for part in parts or PARTS}


class Release:
    """root: its source tree, with its own .venv."""

    def __init__(self, root, folder, config):
        folder.mkdir()
        port = free_port()
        self.processes = Processes(folder, {**config, "GATEWAY_PORT": port}, root)
        self.gateway = f"http://127.0.0.1:{port}"

    def has(self, part):
        return part == "gateway" or (self.processes.root / "services" / f"{part}.py").exists()

    def start(self, part):
        port = free_port()
        server = self.processes.start("gateway" if part == "gateway" else f"services.{part}", METRICS_PORT=port)
        server.is_ready = partial(self._is_up, part, port)
        return server

    def _is_up(self, part, port):
        try:
            return is_ready(port) and (part != "gateway" or requests.get(f"{self.gateway}/readyz", timeout=5).ok)
        except requests.ConnectionError:
            # It does not listen yet.
            return False

    def operate(self, command, *arguments):
        """`python -m ops.COMMAND`, which is `scripts.COMMAND` in 0.1.0."""
        root = self.processes.root
        folder = "ops" if (root / "ops").exists() else "scripts"
        done = subprocess.run(
            [root / ".venv" / "bin" / "python", "-m", f"{folder}.{command}", *arguments],
            cwd=root,
            env=self.processes.environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


class MixedShop(Shop):
    """releases: {OLD: Release, NEW: Release}."""

    def __init__(self, releases, config, broker, smtp):
        super().__init__(config, broker)
        self.releases, self.smtp = releases, smtp
        self._running = {}

    @property
    def gateways(self):
        """The addresses of the running gateways, the old release's first."""
        return [release.gateway for name, release in self.releases.items() if (name, "gateway") in self._running]

    def change_to(self, wanted):
        """Start the missing replicas, wait until they are ready, then stop the others.

        Skips the old release's replicas of a service that it does not have yet.
        """
        wanted = {(name, part) for name, part in wanted if self.releases[name].has(part)}
        started = {(name, part): self.releases[name].start(part) for name, part in wanted - self._running.keys()}
        try:
            for server in started.values():
                server.wait_until_ready()
        except AssertionError:
            for server in started.values():
                server.kill()
            raise
        self._running |= started
        ended = {replica: self._running.pop(replica) for replica in self._running.keys() - wanted}
        for server in ended.values():
            server.send(signal.SIGTERM)
        exit_codes = {replica: server.process.wait(SECONDS_TO_END) for replica, server in ended.items()}
        assert set(exit_codes.values()) <= {0}, exit_codes

    def kill_all(self):
        for server in self._running.values():
            server.kill()
        self._running = {}

    def stop(self):
        super().stop()
        for release in self.releases.values():
            release.processes.stop()

    @contextmanager
    def busy(self, customer, product):
        """During the block the customer places order after order, at each gateway in turn.

        Yields the list of answers other than 201. It is complete after the block.
        """
        refusals, is_over = [], eventlet.event.Event()

        def place_orders():
            while not is_over.ready():
                for gateway in self.gateways:
                    try:
                        answer = customer.order(gateway, product)
                        if answer.status_code != 201:
                            refusals.append(answer.text)
                    except requests.RequestException as error:
                        refusals.append(repr(error))
                    # Leaves CPU time to the processes that start.
                    time.sleep(0.2)

        ordering = eventlet.spawn(place_orders)
        try:
            yield refusals
        finally:
            is_over.send()
            ordering.wait()

    def wait_until_mailed(self, address, order_id):
        wait_for(lambda: any(re.search(rf"\b{order_id}\b", mail["Subject"]) for mail in self.smtp.messages(address)))

    def wait_until_settled(self):
        """Wait until all work is done. Raises AssertionError if an event or mail was lost or handled twice."""
        wait_for(self._is_settled, seconds=60)

    def _is_settled(self):
        for service in ("users", "orders"):
            self._assert_none(service, "SELECT event_name FROM outbox")
        sold = self.sql("orders", "SELECT reservation_id FROM orders WHERE status <> 'cancelled'")
        reserved = self.sql("products", "SELECT id FROM reservations WHERE state <> 'released'")
        assert set(sold) == set(reserved), set(sold) ^ set(reserved)
        self._assert_none(
            "products",
            "SELECT id FROM products"
            " WHERE stock_quantity <> (SELECT sum(delta) FROM stock_movements WHERE product_id = products.id)",
        )
        # Each status of an order causes one event and one mail.
        steps = "SELECT order_id, row_number() OVER (PARTITION BY order_id ORDER BY id) FROM status_steps"
        notified = "SELECT order_id, sequence FROM notifications WHERE order_id < %s"
        assert set(self.sql("orders", steps)) == set(self.sql("notifications", notified, FIRST_INVENTED_ORDER))
        self._assert_none("notifications", "SELECT id, status, error_message FROM notifications WHERE status <> 'sent'")
        [(notifications,)] = self.sql("notifications", "SELECT count(*) FROM notifications")
        mailed = [MESSAGE_ID.search(path.read_bytes())[1] for path in self.smtp.folder.glob("*.eml")]
        assert len(set(mailed)) == len(mailed) == notifications, (len(set(mailed)), len(mailed), notifications)
        parked = [name for name in self.broker.queues() if name.startswith("parked.") and self.broker.depth(name)]
        assert not parked, parked
        orphans = [name for name in self.broker.queues() if DURABLE_QUEUE.fullmatch(name) and self._is_orphan(name)]
        assert not orphans, orphans
        return True

    def _is_orphan(self, queue):
        """Whether its messages wait in vain."""
        return self.broker.depth(queue) > 0 and self.broker.consumers(queue) == 0

    def _assert_none(self, service, statement):
        rows = self.sql(service, statement)
        assert not rows, rows
