"""One connection's requests: eventlet's WSGI protocol with strict grammar, deadlines and refusals as problem details.

    wsgi.Server(listener.socket, address, app, protocol=Protocol, keepalive=KEEPALIVE_SECONDS)

No client can hold a greenlet for ever. Receiving the head and the body, sending the answer and the pause between two
requests each have a deadline, if the connection is a DeadlineSocket of nameko_reliable.web.listener. Lines, heads and
the discarded rest of an unread body have a maximum size.

A request that is refused before the app sees it gets `application/problem+json` (RFC 9457) with an X-Request-ID and
the app's `answer_headers`. The answer names no software.

Not guaranteed: that a request is answered in time. The deadlines are for clients, not for the app's own work.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from http.client import responses
from typing import Any, BinaryIO
from uuid import uuid4

import eventlet
from eventlet import greenio, wsgi
from eventlet.green import socket

from nameko_reliable.web.http11 import (
    REQUEST_LINE,
    MalformedHead,
    StrictChunks,
    TooManyHeaders,
    delimits_body,
    names_one_host,
    read_headers,
)

logger = logging.getLogger(__name__)

HEAD_SECONDS = 15
BODY_SECONDS = 30
KEEPALIVE_SECONDS = 75
# For the client to read a complete answer.
ANSWER_SECONDS = 60
LINGER_SECONDS = 1
MAX_REQUEST_LINE_BYTES = 8000
MAX_DISCARDED_BYTES = 8 * 1024 * 1024


class Protocol(wsgi.HttpProtocol):
    """eventlet's protocol with strict grammar, deadlines and problem documents."""

    rfile: Any
    wfile: Any

    def setup(self) -> None:
        super().setup()
        self.wfile = _AnswerFile(self.wfile, self.connection)

    def handle_one_response(self) -> None:
        self.wfile.deadline = None
        super().handle_one_response()

    def _read_request_line(self) -> bytes:
        seconds = HEAD_SECONDS
        if hasattr(self, "environ"):
            seconds = KEEPALIVE_SECONDS
            # A client that sends requests without a pause would be the only one that is served.
            eventlet.sleep(0)
        self.connection.deadline = time.monotonic() + seconds
        try:
            line: bytes = super()._read_request_line()
        except TimeoutError:
            return b""
        finally:
            self.connection.deadline = None
        if len(line) < self.server.url_length_limit:
            return line
        # Refused here, since eventlet's own refusal is not a problem document.
        self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
        return b""

    def parse_request(self) -> bool:
        """Parse the head into the attributes that eventlet expects. False if the request was refused."""
        self.close_connection = True
        if not self.raw_requestline.strip():
            return False
        refusal = self._parse_request_line() or self._parse_headers()
        if refusal is not None:
            self.send_error(refusal)
            return False
        connection = self.headers.get("Connection", "").lower()
        is_kept = connection != "close" if self.request_version == "HTTP/1.1" else connection == "keep-alive"
        self.close_connection = not is_kept
        return True

    def _parse_request_line(self) -> HTTPStatus | None:
        if len(self.raw_requestline) > MAX_REQUEST_LINE_BYTES:
            return HTTPStatus.REQUEST_URI_TOO_LONG
        found = REQUEST_LINE.fullmatch(self.raw_requestline)
        if found is None:
            return HTTPStatus.BAD_REQUEST
        self.command, path, version = (part.decode("iso-8859-1") for part in found.groups())
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            return HTTPStatus.HTTP_VERSION_NOT_SUPPORTED if version >= "HTTP/2" else HTTPStatus.BAD_REQUEST
        # An app that redirects to a path with two slashes would redirect to another host.
        self.path = f"/{path.lstrip('/')}" if path.startswith("//") else path
        self.request_version = version
        self.requestline = f"{self.command} {path} {version}"
        return None

    def _parse_headers(self) -> HTTPStatus | None:
        self.connection.deadline = time.monotonic() + HEAD_SECONDS
        try:
            self.headers = read_headers(self.rfile)
        except MalformedHead:
            return HTTPStatus.BAD_REQUEST
        except (TooManyHeaders, wsgi.HeaderLineTooLong, wsgi.HeadersTooLarge):
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        finally:
            self.connection.deadline = None
        version = self.request_version
        if not (names_one_host(self.headers, version) and delimits_body(self.headers, version)):
            return HTTPStatus.BAD_REQUEST
        return None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        title = responses.get(code, "Bad Request")
        problem = {
            "type": title.lower().replace(" ", "-"),
            "title": title,
            "status": int(code),
            "detail": "The request's head can't be taken: it is malformed or too large.",
            "instance": "",
            "request_id": uuid4().hex,
        }
        body = json.dumps(problem).encode()
        headers = {
            "Content-Type": "application/problem+json",
            "Content-Length": len(body),
            "Cache-Control": "no-store",
            **self.server.app.answer_headers,
            "X-Request-ID": problem["request_id"],
            "Connection": "close",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        logger.info("a request was refused: %d %s", code, title, extra={"fields": {"status": int(code)}})
        self.wfile.writelines([f"HTTP/1.1 {int(code)} {title}\r\n{head}\r\n".encode(), body])
        self._linger()

    def _linger(self) -> None:
        """Read on for a moment: a connection closed while its client still sends loses the answer (lingering close)."""
        with suppress(OSError), eventlet.Timeout(LINGER_SECONDS, False):
            self.connection.shutdown(socket.SHUT_WR)
            while self.connection.recv(65536):
                pass

    def get_environ(self) -> Any:
        environ = super().get_environ()
        original = environ["eventlet.input"]
        environ["wsgi.input"] = environ["eventlet.input"] = _RequestBody(
            StrictChunks(self.rfile) if original.chunked_input else self.rfile,
            original.content_length,
            self.connection,
            wfile=original.wfile,
            wfile_line=original.wfile_line,
            chunked_input=original.chunked_input,
        )
        if original.chunked_input:
            # Werkzeug may read it without a Content-Length: the chunks mark its end.
            environ["wsgi.input_terminated"] = True
        return environ


class _AnswerFile:
    """A connection's file for answers. The client has ANSWER_SECONDS to read each one."""

    deadline: float | None = None

    def __init__(self, wfile: BinaryIO, connection: Any) -> None:
        self._wfile = wfile
        self._connection = connection
        self.close = wfile.close

    @property
    def closed(self) -> bool:
        return self._wfile.closed

    def write(self, data: bytes) -> None:
        self.writelines([data])

    def writelines(self, lines: Iterable[bytes]) -> None:
        if self.deadline is None:
            self.deadline = time.monotonic() + ANSWER_SECONDS
        # `100 Continue` is sent while the connection has the deadline of the body.
        previous, self._connection.deadline = self._connection.deadline, self.deadline
        try:
            self._wfile.writelines(lines)
            self._wfile.flush()
        except OSError:
            # Otherwise closing the file waits for the client again, to send the rest.
            greenio.shutdown_safe(self._connection)
            raise
        finally:
            self._connection.deadline = previous

    def flush(self) -> None:
        """`writelines` has sent everything already."""


class _RequestBody(wsgi.Input):
    """A request's body. It must arrive within BODY_SECONDS of the first read."""

    deadline: float | None = None

    def _do_read(self, reader: Callable[[int], bytes], length: int | None = None) -> Any:
        return self._in_time(super()._do_read, reader, length)

    def _chunked_read(self, rfile: StrictChunks, length: int | None = None, use_readline: bool = False) -> Any:
        return self._in_time(super()._chunked_read, rfile, length, use_readline)

    def _in_time(self, read: Callable[..., Any], *arguments: Any) -> Any:
        if self.deadline is None:
            self.deadline = time.monotonic() + BODY_SECONDS
        self._sock.deadline = self.deadline
        try:
            return read(*arguments)
        finally:
            self._sock.deadline = None

    def discard(self, buffer_size: int = 16 << 10) -> None:
        """Read what the app left unread, since clients send all of a body before they read the answer."""
        left = MAX_DISCARDED_BYTES
        while left > 0:
            data = self.read(buffer_size)
            if not data:
                return
            left -= len(data)
        raise OSError("the body is too large to discard")
