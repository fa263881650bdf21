"""The types of settings: marshmallow fields that parse the text of an environment variable.

`requirement` completes the sentence "NAME must …". No error quotes the value: it may be a secret, or have been meant
for another setting.
"""

import functools
import re
import ssl
import sys
from collections.abc import Mapping
from email.errors import MessageError
from email.headerregistry import Address
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from marshmallow import ValidationError, fields

from contracts.types import CONTROLS, EMAIL, Data

# 80 bits. zxcvbn never estimates 16 random bytes in hex below 10^28.
MIN_GUESSES = 10**24
MAX_CHARACTERS_ESTIMATED = 72
# In fewer digits, zxcvbn recognizes dates and common numbers.
MIN_RANDOM_DIGITS = 48
EXAMPLE_WORDS = (
    "(a|access|an|app|at|bit|bits|byte|bytes|change|default|dev|development|do|example|for|forage|here|in|insecure|is|it|"
    "jwt|key|least|local|long|me|more|my|not|now|of|only|or|password|placeholder|please|production|random|replace|secret|"
    "set|shop|signing|some|string|super|test|testing|than|the|this|to|token|tokens|use|value|very|with|you|your)*"
)

# As RFC 3986, but in a user or a password only delimiters must be percent-encoded: clients accept the rest as it is.
_USER_CHARACTER = r"(?:[!-~](?<![%/?#@:\[\]])|%[0-9A-Fa-f]{2})"
_USER = rf"(?:{_USER_CHARACTER}*(?::(?:{_USER_CHARACTER}|:)*)?@)"
# Labels of at most 63 characters: the look-up of a longer one raises an error that is not a failed look-up.
_HOST_NAME = r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?"
# Enough to find the address in a URI. _is_address checks it.
_ADDRESS = r"[^\s/?#@,]+"
# Without @, which is most often the end of a password that has one of /?#.
_PATH = r"(?:[!-~](?<![%?#@])|%[0-9A-Fa-f]{2})*"
_QUERY = r"(?:\?(?:[!-~](?<![%#@])|%[0-9A-Fa-f]{2})*)?"
ENCODED = "percent-encode what is special in user and password: / is %2F, @ is %40, # is %23, ? is %3F, % is %25"


class Setting(fields.Field[Any]):
    """One line of text, or another value that config.yaml has."""

    requirement = "be one line of text."

    def __init__(self, default: Any = None, *, required: bool = False) -> None:
        """default: of a setting that is not set, or empty."""
        if required:
            super().__init__(required=True)
        else:
            super().__init__(load_default=default)
        self.error_messages["required"] = f"is not set: it must {self.requirement}"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> Any:
        text = str(value)
        if re.search(f"[{CONTROLS}\ud800-\udfff]", text):
            raise self.invalid()
        return self.parse(text)

    def parse(self, text: str) -> Any:
        return text

    def invalid(self) -> ValidationError:
        return ValidationError(f"must {self.requirement}")


class Number(Setting):
    def __init__(self, lowest: float, highest: float, default: float, *, whole: bool = True) -> None:
        self.lowest, self.highest = lowest, highest
        self.pattern = "[0-9]{1,9}" if whole else r"[0-9]{1,9}(\.[0-9]{1,9})?"
        self.number: type[int] | type[float] = int if whole else float
        self.requirement = f"be a {'whole ' if whole else ''}number from {lowest} to {highest}."
        super().__init__(default)

    def parse(self, text: str) -> float:
        if not re.fullmatch(self.pattern, text) or not self.lowest <= self.number(text) <= self.highest:
            raise self.invalid()
        return self.number(text)


class Section(Setting):
    requirement = "be a section, like {name: value}."

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self.invalid()
        return dict(value)


def Port(default: int, lowest: int = 1) -> Number:
    """lowest: 0 where 0 means any free port."""
    return Number(lowest, 65535, default)


class Choice(Setting):
    """One of the words. The first is the default."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.requirement = f"be {' or '.join(words)}."
        super().__init__(words[0])

    def parse(self, text: str) -> str:
        if text not in self.words:
            raise self.invalid()
        return text


class Secret(Setting):
    """32 bytes or more that are hard to guess, of any characters. It has no default."""

    requirement = "be 32 bytes or more that are hard to guess, for example of `openssl rand -hex 32`."

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        if len(str(value).encode(errors="replace")) < 32 or _is_guessable(str(value)):
            raise self.invalid()
        return str(value)


@functools.lru_cache(maxsize=16)
def _is_guessable(text: str) -> bool:
    """Whether it consists of repetitions, sequences, keyboard rows or words of examples, or can't be encoded."""
    letters = re.sub("[^a-z]", "", text.lower())
    is_example = letters != "" and re.fullmatch(EXAMPLE_WORDS, letters) is not None
    is_text = re.search("[\ud800-\udfff]", text) is None
    if is_example or not is_text:
        return True
    measured = text[:MAX_CHARACTERS_ESTIMATED]
    return not _has_random_digits(measured) and _estimated_guesses(measured) < MIN_GUESSES


def _has_random_digits(text: str) -> bool:
    """Whether it is long and hexadecimal, as of `openssl rand -hex`, with few repetitions and sequences.

    Most secrets are: zxcvbn, which takes 12 MB and 0.05 s, finds all of them hard to guess.
    """
    if not re.fullmatch(f"[0-9a-f]{{{MIN_RANDOM_DIGITS},}}", text):
        return False
    pairs = list(pairwise(text))
    steps = [ord(second) - ord(first) for first, second in pairs]
    repeated_steps = sum(step == previous for previous, step in pairwise(steps))
    return len(set(pairs)) >= 0.75 * len(pairs) and repeated_steps <= 0.25 * len(steps)


def _estimated_guesses(text: str) -> int:
    """The guesses that a cracker needs, by zxcvbn. Its lists of words take 12 MB, so they are not kept."""
    from zxcvbn import zxcvbn

    guesses: int = zxcvbn(text)["guesses"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "zxcvbn"]:
        del sys.modules[name]
    return guesses


class AsciiText(Setting):
    requirement = "be one line of ASCII."

    def parse(self, text: str) -> str:
        if not text.isascii():
            raise self.invalid()
        return text


class Host(Setting):
    requirement = "be a host's name or address, like mail.example.org or 127.0.0.1, without a port."

    def parse(self, text: str) -> str:
        if not re.fullmatch(_HOST_NAME, text):
            try:
                ip_address(text)
            except ValueError:
                raise self.invalid() from None
        return text


class Networks(Setting):
    """Separated by commas. Loads to a list of ip_network."""

    requirement = "be addresses and networks like 10.0.0.0/8 (only zeros after the prefix), separated by commas."

    def __init__(self) -> None:
        super().__init__(())

    def parse(self, text: str) -> list[IPv4Network | IPv6Network]:
        try:
            return [ip_network(entry) for entry in _split_list(text)]
        except ValueError:
            raise self.invalid() from None


class Certificate(Setting):
    """The path of an authority's certificate. The file is read again for every connection."""

    requirement = "be a file with an authority's certificate that can be read."

    def parse(self, text: str) -> str:
        try:
            ssl.create_default_context(cafile=text)
        except OSError:
            raise self.invalid() from None
        return text


class Url(Setting):
    """base: paths are appended to the URL, so a slash at its end is removed."""

    requirement = (
        "be an http or https URL like https://shop.example.org, in ASCII, without a user, a query or a fragment."
    )

    def __init__(self, default: str | None = None, *, base: bool = False) -> None:
        self.base = base
        super().__init__(default)

    def parse(self, text: str) -> str:
        found = re.fullmatch(f"(?i:https?)://({_ADDRESS})(?:/{_PATH})?", text)
        if not found or not _is_address(found[1]):
            raise self.invalid()
        if not self.base:
            return text
        parts = urlsplit(text)
        return urlunsplit(parts._replace(netloc=parts.netloc.lower(), path=parts.path.rstrip("/")))


class Origins(Setting):
    """Separated by commas. Loads to a list of URLs."""

    requirement = "be addresses like https://office.example.org, without a user or a path, separated by commas."

    def __init__(self) -> None:
        super().__init__(())

    def parse(self, text: str) -> list[str]:
        found = [re.fullmatch(f"(https?://({_ADDRESS}))/?", entry) for entry in _split_list(text.lower())]
        if not all(each and _is_address(each[2]) for each in found):
            raise self.invalid()
        return [each[1] for each in found if each]


class MailAddress(Setting):
    """One ASCII address, with or without a name. Loads to an email.headerregistry.Address."""

    requirement = (
        "be one address in ASCII, like Forage <shop@forage.example> or shop@forage.example; "
        'put a name that contains one of ,;:@()[]<>\\" in "quotes".'
    )
    pattern = rf'(?:(?:"((?:[^"\\]|\\["\\])*)"|([^,;:@()\[\]<>\\"]*)) *<(?P<named>{EMAIL})>|(?P<bare>{EMAIL}))'

    def __init__(self, default: str) -> None:
        super().__init__(self.parse(default))

    def parse(self, text: str) -> Address:
        if re.search(r"@[^@>\s]*[^\x00-\x7f@>\s][^@>\s]*>?\s*$", text):
            raise ValidationError("must have its domain in punycode, like shop@xn--bcher-kva.example.")
        found = re.fullmatch(self.pattern, text.strip())
        if not found:
            raise self.invalid()
        quoted, plain = found[1], found[2]
        name = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else (plain or "").strip()
        try:
            return Address(name, addr_spec=found["named"] or found["bare"])
        except (ValueError, MessageError):
            raise self.invalid() from None


class AmqpUri(Setting):
    requirement = f"be the broker's address, like amqp://user:password@localhost:5672// ({ENCODED})."

    def parse(self, text: str) -> str:
        found = re.fullmatch(f"(?i:amqps?|pyamqp)://{_USER}?({_ADDRESS})(?:/{_PATH})?", text)
        if not found or not _is_address(found[1]):
            raise self.invalid()
        return text


class RedisUri(Setting):
    requirement = f"be the address of a Redis, like redis://:password@localhost:6379/0 ({ENCODED})."

    def parse(self, text: str) -> str:
        found = re.fullmatch(f"rediss?://{_USER}?({_ADDRESS})(?:/[0-9]{{0,9}})?{_QUERY}", text)
        if not found or not _is_address(found[1]):
            raise self.invalid()
        # Imported here: few processes need it. Only the library knows which options a connection takes.
        from redis import ConnectionPool

        try:
            ConnectionPool.from_url(text).make_connection()
        except (ValueError, TypeError):
            raise self.invalid() from None
        return text


class DatabaseUris(Setting):
    """{service: URI} of the URIs that are set. A URI has one host or several, as in SQLAlchemy and libpq."""

    requirement = f"be like postgresql+psycopg2://user:password@localhost:5432/orders_db ({ENCODED})."
    pattern = rf"postgresql\+psycopg2://{_USER}?(?P<hosts>(?:{_ADDRESS},)*{_ADDRESS})?/(?!/)(?P<name>{_PATH})(?P<query>{_QUERY})"

    def __init__(self) -> None:
        super().__init__(dict)

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> dict[str, str]:
        if not isinstance(value, Mapping):
            raise self.invalid()
        uris = {service: str(uri) for service, uri in value.items() if uri}
        wrong = {service: [f"must {self.requirement}"] for service, uri in uris.items() if not self.is_valid(uri)}
        if wrong:
            raise ValidationError(wrong)
        return uris

    def is_valid(self, uri: str) -> bool:
        found = re.fullmatch(self.pattern, uri)
        if not found or not found["name"]:
            return False
        # Imported here: few processes need it. Only libpq knows which options a connection takes.
        from psycopg2 import ProgrammingError
        from psycopg2.extensions import make_dsn

        options = parse_qsl(found["query"][1:], keep_blank_values=True)
        try:
            make_dsn(**{name: "1" for name, _ in options})
        except (ProgrammingError, TypeError):
            return False
        hosts = _split_list(",".join([found["hosts"] or "", *(value for name, value in options if name == "host")]))
        # A host that begins with a slash is a folder with a Unix socket.
        return hosts != [] and all(host.startswith("/") or _is_address(host) for host in hosts)


def _is_address(text: str) -> bool:
    """Whether it is a host's name or address, with a valid port or none."""
    found = re.fullmatch(rf"(?:{_HOST_NAME}|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?", text)
    if not found:
        return False
    try:
        ip_address(found["ipv6"] or "::")
    except ValueError:
        return False
    return 1 <= int(found["port"] or 1) <= 65535


def _split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
