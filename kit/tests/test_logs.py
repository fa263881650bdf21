"""nameko_reliable.telemetry.logs: one line for each entry, with the fields of its worker."""

import json
import logging
import sys
import threading

import eventlet
import pytest

from bakery import CakeBaked
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.events import event_handler
from nameko_reliable.rpc import rpc
from nameko_reliable.telemetry.logs import LogContext, QuietExpectedErrors, bind_log_fields, formatter
from nameko_reliable.testing.waiting import wait_for

logger = logging.getLogger("bakery.test")


@pytest.fixture
def lines():
    """The JSON lines of this test's logger, as objects."""
    kept = []

    class Keep(logging.Handler):
        def emit(self, record):
            text = self.format(record)
            assert "\n" not in text
            text.encode()
            kept.append(json.loads(text))

    handler = Keep()
    handler.setFormatter(formatter("json", "INFO"))
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield kept
    logger.removeHandler(handler)


def record_of(message, *args, error=None, **fields):
    try:
        raise error or KeyError("none")
    except Exception:
        exc_info = sys.exc_info() if error else None
    record = logging.LogRecord("bakery", logging.WARNING, __file__, 1, message, args, exc_info)
    if fields:
        record.fields = fields
    return record


class Bakery:
    name = "bakery"

    log_context = LogContext()

    @rpc
    def bake(self, cake):
        logger.info("baking %s", cake)

    @event_handler(CakeBaked)
    def display(self, event):
        logger.info("displaying")


def test_an_entry_is_one_line_of_json(lines):
    logger.warning("%d cakes\nin two lines", 3, extra={"fields": {"status": 200}})

    [line] = lines
    assert line["level"] == "WARNING"
    assert line["logger"] == "bakery.test"
    assert line["message"] == "3 cakes\nin two lines"
    assert line["status"] == 200
    assert line["time"].endswith("Z")


def test_a_log_line_is_written_without_a_look_up_of_its_thread(lines, monkeypatch):
    # To find it, eventlet would go through all threads.
    monkeypatch.setattr(threading, "current_thread", None)

    logger.info("baking")

    assert lines


def test_entries_of_a_worker_have_its_fields(run_service, cluster, lines):
    run_service(Bakery)

    cluster.within(5, request_id="r-1").bakery.bake("Torte")

    [line] = lines
    assert (line["service"], line["method"], line["request_id"]) == ("bakery", "bake", "r-1")
    assert "event_id" not in line


def test_entries_of_a_handler_have_the_id_of_its_event(run_service, broker, lines):
    run_service(Bakery)
    event = CakeBaked(cake="Torte")

    broker.publish_event(event, headers={"nameko.request_id": "r-1"})

    [line] = wait_for(lambda: lines)
    assert (line["request_id"], line["event_id"]) == ("r-1", str(event.event_id))


def test_concurrent_workers_do_not_share_fields(run_service, cluster, lines):
    run_service(Bakery)

    for thread in [
        eventlet.spawn(cluster.within(5, request_id=f"r-{number}").bakery.bake, number) for number in range(20)
    ]:
        thread.wait()

    assert {(line["request_id"], line["message"]) for line in lines} == {(f"r-{n}", f"baking {n}") for n in range(20)}


def test_bound_fields_end_with_their_block(lines):
    with bind_log_fields(request_id="r-1"):
        with bind_log_fields(status=200):
            logger.info("within")
        logger.info("between")
    logger.info("after")

    within, between, after = lines
    assert (within["request_id"], within["status"]) == ("r-1", 200)
    assert (between["request_id"], "status" in between) == ("r-1", False)
    assert "request_id" not in after


def test_an_exception_is_logged_with_its_traceback(lines):
    try:
        raise KeyError("a bug")
    except KeyError:
        logger.exception("it broke")

    [line] = lines
    assert line["traceback"].startswith("Traceback")
    assert line["traceback"].endswith("KeyError: 'a bug'")


def test_any_text_and_object_can_be_logged(lines):
    logger.info("lone surrogate \ud800 and 🍄", extra={"fields": {"object": object()}})

    [line] = lines
    assert line["message"] == "lone surrogate \ud800 and 🍄"


def test_the_text_format_is_readable():
    plain = formatter("text", "INFO").format(record_of("%d cakes", 3, status=200))
    broken = formatter("text", "INFO").format(record_of("it broke \ud800", error=ZeroDivisionError("none")))

    assert plain[12:] == " WARNING 3 cakes  (status=200)"
    assert broken.splitlines()[-1] == "ZeroDivisionError: none"
    broken.encode()


def test_no_control_character_reaches_a_terminal():
    line = formatter("text", "INFO").format(record_of("\x1b[2J \x9b %s", "\r\x00"))

    assert line.endswith(r"\x1b[2J \x9b \x0d\x00")


@pytest.mark.parametrize(
    ("kind", "level", "sentence"),
    [
        ("xml", "INFO", "LOG_FORMAT must be json or text."),
        ("json", "loud", "LOG_LEVEL must be DEBUG, INFO, WARNING, ERROR or CRITICAL."),
    ],
)
def test_a_bad_setting_ends_the_process_with_a_sentence(kind, level, sentence):
    with pytest.raises(SystemExit, match=sentence):
        formatter(kind, level)


def test_a_refusal_is_logged_as_info_and_a_bug_as_warning():
    refusal = record_of("(expected) error handling worker", error=KeyError("sold out"))
    bug = record_of("error handling worker", error=KeyError("a bug"))

    assert all(QuietExpectedErrors().filter(record) for record in (refusal, bug))

    assert (refusal.levelname, refusal.exc_info) == ("INFO", None)
    assert bug.levelname == "WARNING"
    assert bug.exc_info


def test_an_outage_is_a_warning_of_one_line_with_its_cause():
    outage = DatabaseUnavailable("orders")
    outage.__cause__ = OSError("at 100%: read-only\nLINE 1: UPDATE")
    record = record_of("error handling worker %s: %s", "<commit>", outage, error=outage)

    assert QuietExpectedErrors().filter(record)

    assert record.levelname == "WARNING"
    assert not record.exc_info
    assert record.getMessage() == "error handling worker <commit>: orders is unavailable: at 100%: read-only"
