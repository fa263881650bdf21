"""The shop that is measured. It listens on 127.0.0.1 only, and the CPU time of its processes is counted.

It stores data as durably as in production, logs to files, and has no effective rate limits. An SMTP server of its own
keeps its mails.
"""

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import psycopg2
from kombu import Connection
from nameko.standalone.rpc import ClusterRpcProxy

from benchmarks.load import BenchmarkFailed
from benchmarks.report import PARTS
from contracts.types import SERVICES
from dev import npm
from dev.programs import require_programs
from dev.servers import make_databases, passwords_of, postgres_of, rabbitmq_of
from dev.settings import DEFAULT_PORTS, ROOT, LocalSettings
from nameko_reliable.testing.servers import PostgresServer, RabbitMQServer, Server
from nameko_reliable.testing.waiting import wait_for
from services.orders_models import IS_UNCOUNTED
from tests.infrastructure.smtp import Smtp

# All events of a scenario must be handled within this time.
SETTLE_SECONDS = 300
UP_SECONDS = 60
# A token is valid for 15 minutes.
TOKEN_SECONDS = 600
CUSTOMERS = 16
PASSWORD = "a walk in the woods"
NAMEKO = (str(ROOT / ".venv/bin/nameko"),)

# In the order of registration, which is also that of a run.
SCENARIOS = {}


@dataclass(frozen=True)
class Scenario:
    name: str
    run: Callable
    needs_services: bool
    is_default: bool


def scenario(name, needs_services=True, is_default=True):
    """Register a function as a scenario. It gets the shop and a report, to which it adds rows.

    needs_services: without them only PostgreSQL, RabbitMQ and the mail server run. Such scenarios are the first ones.
    is_default: whether it runs when no scenario is named.
    """

    def register(function):
        SCENARIOS[name] = Scenario(name, function, needs_services, is_default)
        return function

    return register


def chosen_scenarios(names):
    """In the order of a run. names: of the chosen ones, none for the default ones."""
    return [each for each in SCENARIOS.values() if (each.name in names if names else each.is_default)]


@contextmanager
def running_shop():
    """A started Shop. Its folder with the logs is kept when the block fails."""
    folder = Path(tempfile.mkdtemp(prefix="forage-bench-"))
    folder.chmod(0o711)
    try:
        shop = Shop(folder)
        try:
            shop.start()
            yield shop
        finally:
            shop.stop()
    except Exception as error:
        raise BenchmarkFailed(f"{error}\nThe logs are in {folder}.") from error
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


class Shop:
    def __init__(self, folder):
        self.folder = folder
        self.settings = LocalSettings(
            {
                **dict.fromkeys(DEFAULT_PORTS, "0"),
                "LOCAL_DIR": str(folder),
                "SMTP_HOST": Smtp.host,
                "RATE_LIMIT_SCALE": "100000",
                "LOG_FORMAT": "json",
                "LOG_LEVEL": "INFO",
            }
        )
        require_programs(self.settings)
        npm.install(npm.DOCS, "the page of /docs")
        self.smtp = Smtp(folder)
        self.settings.ports["SMTP_PORT"] = self.smtp.port
        self.servers = {
            "postgres": PostgresServer(postgres_of(self.settings), folder),
            "rabbitmq": RabbitMQServer(rabbitmq_of(self.settings), folder),
        }
        self.replicas = {part: [] for part in PARTS}
        self.peers = {}
        self._connections, self._tokens = {}, {}
        # The last order that is known to be settled.
        self._settled_order_id = 0
        self.port = self.settings.ports["GATEWAY_PORT"]

    def start(self):
        """Start PostgreSQL and RabbitMQ, without services."""
        for server in self.servers.values():
            server.start()
        for server in self.servers.values():
            server.wait_until_ready()

    def open(self):
        """Start the services and the gateway, with the demo catalogue, unless they run."""
        if any(self.replicas.values()):
            return
        make_databases(self.servers["postgres"].postgres, passwords_of(self.settings))
        environment = self.settings.environment()
        subprocess.run(
            [sys.executable, "-m", "ops.migrate"], cwd=ROOT, env=environment, check=True, capture_output=True
        )
        self.scale()
        demo = {**environment, "DEMO_PASSWORD": PASSWORD}
        subprocess.run([sys.executable, "ops/seed.py"], cwd=ROOT, env=demo, check=True, capture_output=True)
        with self.rpc() as rpc:
            for product in self.products():
                # It must not sell out.
                rpc.products.set_stock(product_id=product["id"], stock_quantity=10**9)

    def stop(self):
        self.stop_parts()
        for connection in self._connections.values():
            connection.close()
        for server in reversed(self.servers.values()):
            server.stop()
        self.smtp.stop()

    def stop_parts(self):
        for replicas in self.replicas.values():
            for replica in replicas:
                replica.stop()
            replicas.clear()

    def scale(self, environment=None, nameko=NAMEKO, **counts):
        """Restart the parts with these numbers of replicas, one by default.

        environment: further settings for all. nameko: the command that runs them.
        """
        self.stop_parts()
        for part in PARTS:
            for number in range(1, counts.get(part, 1) + 1):
                self._start_replica(part, number, environment or {}, nameko)
        wait_for(self._is_up, UP_SECONDS)

    def _start_replica(self, part, number, environment, nameko):
        module = part if part == "gateway" else f"services.{part}"
        command = [*nameko, "run", "--config", "config.yaml", module]
        server = Server(f"{part}-{number}", self.folder, command, self.settings.environment() | environment, cwd=ROOT)
        server.log.unlink(missing_ok=True)
        self.replicas[part].append(server.start())
        return server

    def restart(self, part):
        """Restart the only replica of a part. Returns its seconds until it serves, and its CPU seconds until then."""
        [replica] = self.replicas[part]
        replica.stop()
        self.replicas[part].clear()
        started_at = time.monotonic()
        replica = self._start_replica(part, 1, {}, NAMEKO)
        wait_for(lambda: _is_ready(replica), UP_SECONDS, pause_seconds=0.02)
        seconds, cpu_seconds = time.monotonic() - started_at, cpu_seconds_of(replica.process.pid)
        wait_for(self._is_up, UP_SECONDS)
        return seconds, cpu_seconds

    def signal(self, signal_number):
        for replicas in self.replicas.values():
            for replica in replicas:
                replica.send(signal_number)

    def _is_up(self):
        started = [replica for replicas in self.replicas.values() for replica in replicas]
        for replica in started:
            if replica.process.poll() is not None:
                raise BenchmarkFailed(f"{replica.name} ended: {replica.output().strip()}")
        gateways = self.replicas["gateway"]
        return all("listening on port" in gateway.output() for gateway in gateways) and all(map(_is_ready, started))

    def process_trees(self):
        """{part: the ids of its replicas' first processes}, including PostgreSQL, RabbitMQ and the mail server."""
        trees = {part: [replica.process.pid for replica in replicas] for part, replicas in self.replicas.items()}
        trees |= {name: [server.process.pid] for name, server in self.servers.items()}
        trees |= {name: [server.process.pid for server in servers] for name, servers in self.peers.items()}
        return {**trees, "mail server": [self.smtp.server.process.pid]}

    def cpu_seconds(self):
        """{part: CPU time since its start}, including its children. The clients are this process itself."""
        parts = {part: sum(map(cpu_seconds_of, pids)) for part, pids in self.process_trees().items()}
        return {**parts, "clients": time.process_time()}

    def request(self, method, path, body=None, token=None):
        """The gateway's answer, read from JSON. Raises BenchmarkFailed when it is an error."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise BenchmarkFailed(f"{method} {path} was answered {error.code}: {error.read().decode()}") from error

    def log_in(self, email, password):
        token, logged_in_at = self._tokens.get(email, (None, -math.inf))
        if time.monotonic() - logged_in_at > TOKEN_SECONDS:
            token = self.request("POST", "/users/login", {"email": email, "password": password})["access_token"]
            self._tokens[email] = token, time.monotonic()
        return token

    def customers(self, count):
        """The access tokens of that number of customers, who are registered at first use."""
        return [self._customer(f"customer-{number}@forage.example") for number in range(count)]

    def customer(self, name):
        """The access token of one customer, who is registered at first use."""
        return self._customer(f"{name}@forage.example")

    def _customer(self, email):
        if not self.sql("users", "SELECT id FROM users WHERE email = %s", email):
            account = {"email": email, "username": email.partition("@")[0], "password": PASSWORD}
            self.request("POST", "/users/register", account)
            # An unproven address would get only some of its mails.
            self.sql("users", "UPDATE users SET email_verified_at = now() WHERE email = %s", email)
        return self.log_in(email, PASSWORD)

    def admin(self):
        return self.log_in("admin@forage.example", PASSWORD)

    def products(self):
        return self.request("GET", "/products?limit=100")["items"]

    def rpc(self):
        return ClusterRpcProxy({"AMQP_URI": self.settings.amqp_uri()}, timeout=10)

    def cursor(self, service):
        """A cursor in autocommit. The connection is kept: a new one costs PostgreSQL as much as a small order."""
        if service not in self._connections:
            uri = self.settings.database_uri(service, f"{service}_db").replace("+psycopg2", "")
            self._connections[service] = psycopg2.connect(uri)
            self._connections[service].autocommit = True
        return self._connections[service].cursor()

    def sql(self, service, statement, *parameters):
        """The rows of a statement, run in its own transaction."""
        with self.cursor(service) as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def count(self, service, rows):
        """rows: the part of the query after FROM."""
        return self.sql(service, f"SELECT count(*) FROM {rows}")[0][0]

    def versions(self):
        """Of the servers, and of the packages that cost most of the CPU."""
        [[postgres]] = self.servers["postgres"].execute("SHOW server_version")
        packages = ("nameko", "eventlet", "sqlalchemy", "psycopg2-binary", "flask", "amqp", "kombu")
        with Connection(self.settings.amqp_uri()) as connection:
            rabbitmq = connection.connection.server_properties["version"]
        return {"postgresql": postgres, "rabbitmq": rabbitmq, **{name: version(name) for name in packages}}

    def database_bytes(self):
        """{service: bytes on the disk, indexes included}."""
        size = "SELECT pg_database_size(current_database())"
        return {service: self.sql(service, size)[0][0] for service in SERVICES}

    def wait_until_settled(self):
        """Wait until no event and no mail is in progress. Raises BenchmarkFailed after SETTLE_SECONDS.

        Each look reads few rows: PostgreSQL's part of an order is measured meanwhile.
        """

        def settled():
            last = self._settled_order_id
            pending = {
                "events in the outbox": self.count("orders", "outbox") + self.count("users", "outbox"),
                "orders without a notification": self.count("orders", f"orders WHERE id > {last}")
                - self.count("notifications", f"notifications WHERE order_id > {last} AND sequence = 1"),
                "mails": self.count("notifications", "notifications WHERE status = 'pending'"),
            }
            left = {name: count for name, count in pending.items() if count}
            assert not left, f"{left}"
            return True

        try:
            wait_for(settled, SETTLE_SECONDS, pause_seconds=0.05)
        except AssertionError as error:
            raise BenchmarkFailed(f"The shop did not finish its work: {error}") from error
        [[last]] = self.sql("orders", "SELECT coalesce(max(id), 0) FROM orders")
        self._settled_order_id = last

    def deliver_orders(self):
        """Close all orders: limits let an account have few open ones, and placing an order counts them."""
        self.sql("orders", "UPDATE orders SET status = 'delivered' WHERE status IN ('pending', 'confirmed')")

    def wait_until_counted(self):
        """Wait until all orders are in the sums of the back office."""
        wait_for(lambda: not self.count("orders", f"orders WHERE {IS_UNCOUNTED}"), SETTLE_SECONDS)

    def wait_until_idle(self, part):
        """Wait until a part takes less than 5 % of a core."""

        def idle():
            before = self.cpu_seconds()[part]
            time.sleep(0.2)
            return self.cpu_seconds()[part] - before < 0.01

        wait_for(idle, SETTLE_SECONDS)

    def check_books(self):
        """Raise BenchmarkFailed unless orders, stock and notifications agree: a fast wrong answer is useless."""
        self.wait_until_settled()
        off = self.sql(
            "products",
            "SELECT p.id FROM products p LEFT JOIN stock_movements m ON m.product_id = p.id "
            "GROUP BY p.id HAVING p.stock_quantity <> coalesce(sum(m.delta), 0)",
        )
        sold = self.sql("orders", "SELECT product_id, sum(quantity) FROM order_items GROUP BY 1 ORDER BY 1")
        taken = self.sql(
            "products",
            "SELECT product_id, -sum(delta) FROM stock_movements WHERE reason <> 'edit' GROUP BY 1 ORDER BY 1",
        )
        orders = self.sql("orders", "SELECT reservation_id FROM orders ORDER BY 1")
        # Open ones are settled later.
        kept = self.sql("products", "SELECT id FROM reservations WHERE state <> 'released' ORDER BY 1")
        notified = self.sql("notifications", "SELECT order_id FROM notifications WHERE event_name = 'order.created'")
        missing = set(self.sql("orders", "SELECT id FROM orders")) - set(notified)
        with self.rpc() as rpc:
            parked = rpc.products.count_parked() + rpc.notifications.count_parked()
        wrong = {
            "products whose stock is not their ledger's sum": off,
            "products whose sold and reserved units differ": set(sold) ^ set(taken),
            "orders without their reservation, or reservations without their order": set(orders) ^ set(kept),
            "orders without a notification": missing,
            "parked messages": parked,
        }
        if any(wrong.values()):
            raise BenchmarkFailed(f"The books are wrong: { {name: found for name, found in wrong.items() if found} }")


def _is_ready(replica):
    """Whether its /readyz answers 200."""
    port = metrics_port(replica)
    if port is None:
        return False
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20):
            return True
    except urllib.error.HTTPError:
        return False


def metrics_port(replica):
    """The port of /metrics and /readyz, which its log names, or None before that."""
    port = re.search(r"serving metrics on port (\d+)", replica.output())
    return port and int(port[1])


def cpu_seconds_of(pid):
    """CPU time of a process and its descendants. Those that have ended count in their parent's times."""
    first = psutil.Process(pid)
    total = 0
    # The parent last: it counts children that end meanwhile.
    for process in [*first.children(recursive=True), first]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += _own_cpu_seconds(process.pid, times) + times.children_user + times.children_system
    return total


def _own_cpu_seconds(pid, times):
    try:
        # Linux: the clock of clock_getcpuclockid(3). psutil's times are in steps of 10 ms, and PostgreSQL has a process
        # for each connection: of a short row they would miss a third.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return times.user + times.system


def seconds_for(condition):
    """Wait for the condition and return the seconds that it took."""
    started_at = time.monotonic()
    wait_for(condition, SETTLE_SECONDS, pause_seconds=0.02)
    return time.monotonic() - started_at


def pss_bytes(pid):
    """Memory of a process and its descendants, with its share of what it shares. None where the system has no PSS."""
    first = psutil.Process(pid)
    total = 0
    for process in [first, *first.children(recursive=True)]:
        memory = process.memory_full_info()
        if not hasattr(memory, "pss"):
            return None
        total += memory.pss
    return total
