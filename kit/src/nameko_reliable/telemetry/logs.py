"""Logs: one line of JSON for each entry on standard output, or plain text for people.

A line has `time`, `level`, `service`, `logger` and `message`. In a worker it also has `method`, `request_id` and, in
event handlers, `event_id`: a service with `log_context = LogContext()` sets them. Other code sets fields for a block
with `bind_log_fields(request_id=…)`, and for one entry with `extra={"fields": {…}}`. In a trace
(nameko_reliable.telemetry.tracing) a line has its `trace_id`, and `span_id` if the trace is sampled.
"""

import json
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from nameko.extensions import DependencyProvider

from nameko_reliable.errors import ServiceUnavailable
from nameko_reliable.messages import timestamp
from nameko_reliable.telemetry.tracing import trace_fields

# The switches of `logging` for fields that no line of ours has. To find a thread's name, eventlet would go through all
# threads at each entry.
UNUSED_RECORD_FIELDS = ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks")

# Each greenlet has its own context, so the fields of concurrent workers and requests do not mix.
_fields: ContextVar[dict[str, Any]] = ContextVar("log_fields", default={})  # noqa: B039 - never mutated
_process: dict[str, str | None] = {"service": None}

log_fields = _fields.get
# `json.dumps` would make an encoder at each call, because of the options.
_to_json = json.JSONEncoder(ensure_ascii=False, default=str).encode


class LogContext(DependencyProvider):
    def bind(self, container: Any, attr_name: str) -> Any:
        # `bind` comes before every `setup`, so that the first line has it, too.
        _process["service"] = container.service_name
        return super().bind(container, attr_name)

    def worker_setup(self, worker_ctx: Any) -> None:
        fields = {
            "service": worker_ctx.service_name,
            "method": worker_ctx.entrypoint.method_name,
            "request_id": worker_ctx.data.get("request_id"),
            "event_id": worker_ctx.data.get("event_id"),
        }
        _fields.set({name: value for name, value in fields.items() if value is not None})


@contextmanager
def bind_log_fields(**fields: Any) -> Iterator[None]:
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def formatter(kind: str, level: str) -> logging.Formatter:
    """A logging formatter, "json" or "text", for the LOGGING section of a Nameko configuration.

    level: only checked here, since `logging` itself ends with a traceback for an unknown one.
    From then on no log record of this process knows its thread, process or task: see UNUSED_RECORD_FIELDS.
    """
    for name in UNUSED_RECORD_FIELDS:
        setattr(logging, name, False)
    if level not in logging.getLevelNamesMapping():
        raise SystemExit("LOG_LEVEL must be DEBUG, INFO, WARNING, ERROR or CRITICAL.")
    if kind == "json":
        return _JsonFormatter()
    if kind == "text":
        return _TextFormatter()
    raise SystemExit("LOG_FORMAT must be json or text.")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _printable(_to_json({**_entry(record), **_traceback(record)}))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {**_entry(record), **_traceback(record)}
        time, level, message = entry.pop("time")[11:23], entry.pop("level"), entry.pop("message")
        trace = entry.pop("traceback", None)
        entry.pop("service"), entry.pop("logger")
        fields = " ".join(f"{name}={value}" for name, value in entry.items())
        line = f"{time} {level:7} {message}" + (f"  ({fields})" if fields else "") + (f"\n{trace}" if trace else "")
        # A client's control characters must not reach a terminal.
        return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", _printable(line))


def _entry(record: logging.LogRecord) -> dict[str, Any]:
    return {
        "time": timestamp(datetime.fromtimestamp(record.created, UTC)),
        "level": record.levelname,
        "service": _process["service"],
        "logger": record.name,
        "message": record.getMessage(),
        **_fields.get(),
        **trace_fields(),
        **getattr(record, "fields", {}),
    }


def _printable(text: str) -> str:
    """Escape lone surrogates, which a client may send and UTF-8 cannot encode. The result is still JSON."""
    return text.encode(errors="backslashreplace").decode()


def _traceback(record: logging.LogRecord) -> dict[str, str]:
    if not record.exc_info:
        return {}
    return {"traceback": "".join(traceback.format_exception(*record.exc_info)).rstrip()}


class QuietExpectedErrors(logging.Filter):
    """For the logger `nameko.containers`: only bugs get a traceback.

    An error that is a method's answer is logged as INFO. An outage is a WARNING with its cause, at each attempt of a
    handler or timer.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if str(record.msg).startswith("(expected)"):
            record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
        elif isinstance(error, ServiceUnavailable):
            record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
            cause = f": {error.__cause__}" if error.__cause__ else ""
            # After the first line PostgreSQL quotes the statement.
            record.msg += f" is unavailable{cause}".partition("\n")[0].replace("%", "%%")
        return True
