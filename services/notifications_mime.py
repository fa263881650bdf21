"""Mails as SMTP transports them: a header, a text and an HTML part, written by hand.

Python's email package takes 5 ms to build and fold a mail. tests/notifications/test_mime.py reads the mails with it.
"""

import re
from base64 import b64encode
from binascii import b2a_qp
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.headerregistry import Address

# Without CRLF, by RFC 5322, 2.1.1: the longest line that may be sent, and the longest that should be.
MAX_LINE, USUAL_LINE = 998, 78
# The text in one encoded word, which then has 60 characters. With "Subject: " its line has 69; RFC 2047 allows 76.
ENCODED_WORD_BYTES = 36
# No quoted-printable text contains "=_": after "=" come two digits, or the line ends (RFC 2045, 6.7).
BOUNDARY = "=_forage"
# In an address these would end it, begin another one, or be decoded to another one.
NOT_IN_ADDRESS = re.compile(r"[\s\x00-\x1f\x7f-\x9f()<>\[\]:;,\\\"]|=\?")
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Mail:
    """A mail to one recipient. content: header and body, all lines with CRLF. Dots are not doubled."""

    sender: str
    recipient: str
    content: bytes

    @property
    def is_international(self) -> bool:
        """Whether SMTP transports it only with SMTPUTF8 (RFC 6531)."""
        return not (self.sender + self.recipient).isascii()


def write_mail(sender: Address, recipient: str, subject: str, text: str, html: str, headers: Mapping[str, str]) -> Mail:
    """A mail with a text and an HTML part.

    headers: further ones, short and in ASCII. Raises ValueError for control characters in the header, a recipient that
    is not one address, and halves of surrogate pairs.
    """
    lines = [
        f"From: {_mailbox(sender)}",
        f"To: {_address(recipient)}",
        f"Subject: {_unstructured(subject, len('Subject: '))}",
        *(f"{name}: {_checked(value)}" for name, value in headers.items()),
        "MIME-Version: 1.0",
        f'Content-Type: multipart/alternative; boundary="{BOUNDARY}"',
    ]
    # A header with UTF-8 is only sent with SMTPUTF8.
    header = "\r\n".join(lines).encode()
    if any(len(line) > MAX_LINE for line in header.split(b"\r\n")):
        raise ValueError("a line of the header is too long")
    parts = b"".join(_part(kind, content) for kind, content in (("plain", text), ("html", html)))
    return Mail(sender.addr_spec, recipient, b"%b\r\n\r\n%b--%b--\r\n" % (header, parts, BOUNDARY.encode()))


def _part(kind: str, content: str) -> bytes:
    """A part of the body, from its boundary to the line end before the next one. It ends with a line end of its own."""
    lines = content.replace("\r\n", "\n").replace("\r", "\n")
    encoded = b2a_qp((lines if lines.endswith("\n") else f"{lines}\n").encode()).replace(b"\n", b"\r\n")
    head = f'--{BOUNDARY}\r\nContent-Type: text/{kind}; charset="utf-8"\r\nContent-Transfer-Encoding: quoted-printable'
    return b"%b\r\n\r\n%b\r\n" % (head.encode(), encoded)


def _mailbox(address: Address) -> str:
    name = _checked(address.display_name)
    # "=?" begins an encoded word, for many programs even within quotes.
    if name.isascii() and "=?" not in name and name == " ".join(name.split()):
        # With quotes around a name that needs them.
        return str(address)
    # On a line of its own, so that the line with the last encoded word is short enough.
    return f"{_encoded_words(name)}\r\n <{address.addr_spec}>"


def _address(address: str) -> str:
    if NOT_IN_ADDRESS.search(address):
        raise ValueError("the recipient is not one address")
    return address


def _unstructured(text: str, used: int) -> str:
    """The value of a header that only people read. used: the length of its line before the value."""
    is_plain = _checked(text).isascii() and text == text.strip() and "=?" not in text
    return text if is_plain and used + len(text) <= USUAL_LINE else _encoded_words(text)


def _encoded_words(text: str) -> str:
    """The text as encoded words (RFC 2047), each on a line of its own. Reading them drops the line ends."""
    return "\r\n ".join(f"=?utf-8?b?{b64encode(chunk).decode()}?=" for chunk in _chunks(text.encode()))


def _chunks(encoded: bytes) -> Iterator[bytes]:
    """Cuts the UTF-8 into pieces of at most ENCODED_WORD_BYTES, without cutting a character."""
    while encoded:
        end = ENCODED_WORD_BYTES
        while end < len(encoded) and encoded[end] & 0xC0 == 0x80:
            end -= 1
        yield encoded[:end]
        encoded = encoded[end:]


def _checked(value: str) -> str:
    """The value, if it can't begin another header. Raises ValueError."""
    if CONTROLS.search(value):
        raise ValueError("a header has a control character")
    return value
