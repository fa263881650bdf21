"""The start of a process: its log lines and its probes."""

import json
from pathlib import Path

import requests

from nameko_reliable.testing.waiting import wait_for


def test_every_log_line_of_a_process_names_its_service(processes):
    orders = processes.start("services.orders", LOG_FORMAT="json")

    # Python's warnings are not log lines.
    lines = wait_for(lambda: [json.loads(line) for line in orders.output().splitlines() if line.startswith("{")])

    assert {line["service"] for line in lines} == {"orders"}
    assert "starting services" in lines[0]["message"]


def test_a_process_that_waits_for_the_broker_at_its_start_is_live(processes, proxy):
    proxy.go_away()

    server = processes.start("services.users", AMQP_URI=proxy.uri)

    port = wait_for(lambda: port_in(server.output()))
    assert requests.get(f"http://127.0.0.1:{port}/livez", timeout=10).status_code == 200
    assert requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 503


def test_the_config_of_0_1_0_starts_a_service(processes):
    as_released = Path(__file__).with_name("config-0.1.0.yaml")

    orders = processes.start("services.orders", config=as_released, LOG_FORMAT="json")

    port = wait_for(lambda: port_in(orders.output()))
    ready = f"http://127.0.0.1:{port}/readyz"
    assert wait_for(lambda: requests.get(ready, timeout=10).status_code == 200)


def port_in(output):
    """The port in the log line about it, or None before that line."""
    _, _, rest = output.partition("serving metrics on port ")
    digits = rest.partition('"')[0]
    return int(digits) if digits.isdecimal() else None
