"""The whole shop as `make run` starts it, seen from outside: HTTP, a WebSocket, the mail catcher and the terminal."""

import signal
import socket
import subprocess

import pytest
import requests

from contracts.types import SERVICES
from dev.settings import DEFAULT_PORTS, ROOT
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.processes import is_alive

pytestmark = pytest.mark.server


def is_healthy(shop):
    return requests.get(f"{shop.gateway}/health", timeout=10).json()["status"] == "healthy"


def test_an_order_brings_a_mail_and_a_push(customer, product):
    with customer.listen() as feed:
        answer = customer.order(product, quantity=2)
        push = feed.receive_until("notification")["data"]

    assert answer.status_code == 201, answer.text
    order = answer.json()
    assert order["status"] == "pending"
    assert (push["event_type"], push["order_id"]) == ("order_confirmation", order["id"])
    [mail] = wait_for(lambda: customer.mails("order.created"))
    assert mail["subject"] == push["subject"]
    assert product["name"] in mail["text"] and product["name"] in mail["html"]
    assert order["total_amount"] in mail["text"] and order["total_amount"] in mail["html"]


def test_a_confirmed_order_brings_another_mail_and_push(customer, admin, product):
    order = customer.order(product).json()
    wait_for(lambda: customer.mails("order.created"))

    with customer.listen() as feed:
        answer = admin.request("PATCH", f"/orders/{order['id']}/status", json={"status": "confirmed"})
        push = feed.receive_until("notification")["data"]

    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "confirmed"
    assert (push["event_type"], push["order_id"]) == ("order_status_update", order["id"])
    [mail] = wait_for(lambda: customer.mails("order.status.updated"))
    assert mail["subject"] == push["subject"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_is_back_within_5_seconds(service, shop, customer, product):
    victim = shop.process_of(f"services.{service}")

    victim.kill()

    wait_for(lambda: shop.process_of(f"services.{service}") not in (None, victim), seconds=5)
    wait_for(lambda: f"{service} was killed by signal 9; starting it again" in shop.output())
    # The gateway caches its answer to /health for a short time.
    wait_for(lambda: is_healthy(shop) and customer.order(product).status_code == 201)
    wait_for(lambda: customer.mails("order.created"))


def test_another_terminal_joins_with_the_env_file(shop):
    command = f"source .venv/bin/activate; source {shop.folder}/env; nameko shell --config config.yaml"

    shell = subprocess.run(
        ["bash", "-c", command],
        input="print(n.rpc.products.list_products(limit=3)['total'], 'products')\n",
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert " products" in shell.stdout, shell.stderr
    assert "EventletDeprecationWarning" not in shell.stderr


def test_the_log_shows_no_secrets_and_no_deprecation_warnings(shop, customer):
    log = shop.output()

    assert "EventletDeprecationWarning" not in log
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    for secret in (customer.token, "hen of the woods", "$2b$", *(shop.folder / "secrets").iterdir()):
        assert (secret if isinstance(secret, str) else secret.read_text()) not in log


def test_a_second_start_of_the_same_copy_is_refused_with_a_sentence(shop):
    second = subprocess.run(
        shop.process.args, cwd=ROOT, env={"LOCAL_DIR": str(shop.folder)}, capture_output=True, text=True, timeout=30
    )

    assert second.returncode == 1
    assert second.stderr.startswith(f"forage: The copy in {shop.folder} is running already")
    assert second.stderr.count("\n") == 1


def test_a_second_copy_ends_within_10_seconds_of_sigterm_and_leaves_the_first_running(shop, own_shop):
    started = own_shop.processes()
    assert len(started) > len(DEFAULT_PORTS)

    own_shop.process.send_signal(signal.SIGTERM)

    assert own_shop.process.wait(10) == 0
    assert own_shop.processes() == []
    assert not [process for process in started if is_alive(process)]
    for name in DEFAULT_PORTS:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(own_shop.settings[name]))) != 0
    assert is_healthy(shop)
