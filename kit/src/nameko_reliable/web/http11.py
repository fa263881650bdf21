"""The grammar of HTTP/1.1: which request lines, headers and chunks the server takes.

    head = StrictHead(connection.makefile("rb"))
    line = head.readline()    # raises MalformedHead

RFC 9112, 2 to 7, without the leniency that it allows: what is read more leniently, a proxy and this server could
read differently, and see different requests.

Not guaranteed: that a header's value makes sense. Its characters are checked, not its meaning; only Host,
Content-Length and Transfer-Encoding are read.
"""

import re
from email.message import Message
from typing import BinaryIO

from eventlet.wsgi import ChunkReadError

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(TOKEN + rb" [\x21-\x7e\x80-\xff]+ HTTP/1\.[01]\r\n")
END_OF_LINE = re.compile(rb"\r\n")
HEADER_LINE = re.compile(rb"(?:" + TOKEN + rb":[\t\x20-\x7e\x80-\xff]*)?\r\n")
CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]{1,16}(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n|" + HEADER_LINE.pattern)
MAX_CHUNK_LINE_BYTES = 1000


def names_one_host(headers: Message, version: str) -> bool:
    """As RFC 9112, 3.2, demands. A request of HTTP/1.0 may name none."""
    hosts = len(headers.get_all("host", []))
    return hosts == 1 or (hosts == 0 and version == "HTTP/1.0")


def delimits_body(headers: Message) -> bool:
    """Whether the body's end is beyond doubt. Where it isn't, a proxy and this server could see different requests."""
    lengths = headers.get_all("content-length", [])
    encodings = headers.get_all("transfer-encoding", [])
    if encodings:
        return not lengths and [encoding.strip(" \t").lower() for encoding in encodings] == ["chunked"]
    return len(lengths) <= 1 and all(re.fullmatch("[0-9]{1,18}", length.strip(" \t")) for length in lengths)


class MalformedHead(Exception):
    pass


class StrictHead:
    """A file whose lines are those of a head. Raises MalformedHead."""

    def __init__(self, rfile: BinaryIO) -> None:
        self._readline = rfile.readline

    def readline(self, size: int = -1) -> bytes:
        line = self._readline(size)
        if not HEADER_LINE.fullmatch(line):
            raise MalformedHead
        return line


class StrictChunks:
    """A file whose lines are those between chunks, as strict as a head's and short. Raises ChunkReadError.

    After a malformed line nothing more is read: where the body ends is not known.
    """

    def __init__(self, rfile: BinaryIO) -> None:
        self._rfile = rfile
        self._expected: re.Pattern[bytes] | None = CHUNK_LINE

    def read(self, size: int = -1) -> bytes:
        if self._expected is None:
            raise ChunkReadError("the body's chunks are malformed")
        self._expected = END_OF_LINE
        return self._rfile.read(size)

    def readline(self) -> bytes:
        expected, self._expected = self._expected, None
        line = b"" if expected is None else self._rfile.readline(MAX_CHUNK_LINE_BYTES)
        if expected is None or not expected.fullmatch(line):
            raise ChunkReadError("the body's chunks are malformed")
        self._expected = CHUNK_LINE
        return line
