"""The grammar of HTTP/1.1: which request lines, headers and chunks the server takes.

    found = REQUEST_LINE.fullmatch(line)          # None for a malformed one
    headers = read_headers(connection.makefile("rb"))    # raises MalformedHead

It follows RFC 9112, sections 2 to 7, without the leniency that they allow. If a proxy and this server read a malformed
request differently, they see different requests (request smuggling).

Not guaranteed: that a header's value makes sense. Only its characters are checked, and the values of Host,
Content-Length and Transfer-Encoding.
"""

import re
from email.message import Message
from http.client import HTTPMessage
from typing import BinaryIO

from eventlet.wsgi import ChunkReadError

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# The groups are method, target and version.
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e\x80-\xff]+) (HTTP/[0-9]\.[0-9])\r\n")
END_OF_LINE = re.compile(rb"\r\n")
# The groups are name and value. Both are None for the empty line after the last header.
HEADER_LINE = re.compile(rb"(?:(" + TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*))?\r\n")
CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]{1,16}(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n|" + HEADER_LINE.pattern)
MAX_CHUNK_LINE_BYTES = 1000
# Of a body, its trailers included. While a client sends fast enough, reading them does not yield to other requests.
MAX_CHUNK_LINES = 10_000
MAX_HEADERS = 99


def names_one_host(headers: Message, version: str) -> bool:
    """Whether there is exactly one Host header (RFC 9112, 3.2), or none in HTTP/1.0."""
    hosts = len(headers.get_all("host", []))
    return hosts == 1 or (hosts == 0 and version == "HTTP/1.0")


def delimits_body(headers: Message, version: str) -> bool:
    """Whether the headers leave no doubt where the body ends. Otherwise a proxy could see other requests."""
    lengths = headers.get_all("content-length", [])
    encodings = headers.get_all("transfer-encoding", [])
    if encodings:
        # HTTP/1.0 has no transfer encodings (RFC 9112, 6.1).
        chunks = [encoding.strip(" \t").lower() for encoding in encodings] == ["chunked"]
        return chunks and not lengths and version != "HTTP/1.0"
    return len(lengths) <= 1 and all(re.fullmatch("[0-9]{1,18}", length.strip(" \t")) for length in lengths)


class MalformedHead(Exception):
    pass


class TooManyHeaders(Exception):
    pass


def read_headers(rfile: BinaryIO) -> HTTPMessage:
    """The headers, up to the empty line after them. Raises MalformedHead, or TooManyHeaders beyond MAX_HEADERS.

    The standard library's parser, made for mail, takes five times as long.
    """
    headers = HTTPMessage()
    for _ in range(MAX_HEADERS + 1):
        found = HEADER_LINE.fullmatch(rfile.readline())
        if found is None:
            raise MalformedHead
        name, value = found.groups()
        if name is None:
            return headers
        headers[name.decode("ascii")] = value.decode("iso-8859-1").strip(" \t")
    raise TooManyHeaders


class StrictChunks:
    """A file that reads chunks and the lines between them, which must be well-formed and few. Raises ChunkReadError.

    After a malformed line it reads nothing more, since the end of the body is unknown.
    """

    def __init__(self, rfile: BinaryIO) -> None:
        self._rfile = rfile
        self._lines = 0
        self._expected: re.Pattern[bytes] | None = CHUNK_LINE

    def read(self, size: int = -1) -> bytes:
        if self._expected is None:
            raise ChunkReadError("the body's chunks are malformed")
        self._expected = END_OF_LINE
        return self._rfile.read(size)

    def readline(self) -> bytes:
        expected, self._expected = self._expected, None
        self._lines += 1
        if self._lines > MAX_CHUNK_LINES:
            raise ChunkReadError("the body has too many chunks or trailers")
        line = b"" if expected is None else self._rfile.readline(MAX_CHUNK_LINE_BYTES)
        if expected is None or not expected.fullmatch(line):
            raise ChunkReadError("the body's chunks are malformed")
        self._expected = CHUNK_LINE
        return line
