"""Settings that are checked once, at start: a bad one ends the process with a sentence."""

import re
import ssl
from urllib.parse import urlsplit

from nameko.extensions import DependencyProvider

# 80 bits. 16 random bytes in hex are never judged below 10^28.
LEAST_GUESSES = 10**24
MOST_CHARACTERS_JUDGED = 72
AMQP_URI_HINT = "the broker's address, like pyamqp://user:password@localhost:5672//."
EXAMPLE_WORDS = (
    "(a|access|an|app|at|bit|bits|byte|bytes|change|default|dev|development|do|example|for|forage|here|in|insecure|is|it|"
    "jwt|key|least|local|long|me|more|my|not|now|of|only|or|password|placeholder|please|production|random|replace|secret|"
    "set|shop|signing|some|string|super|test|testing|than|the|this|to|token|tokens|use|value|very|with|you|your)*"
)


def required(config, name, hint):
    value = config.get(name)
    if not value:
        raise SystemExit(f"{name} is not set: {hint}")
    return value


def secret(config, name, least_bytes, hint):
    value = required(config, name, hint)
    if len(value.encode()) < least_bytes:
        raise SystemExit(f"{name} is too short: set {least_bytes} bytes or more, for example `openssl rand -hex 32`.")
    if is_guessable(value):
        raise SystemExit(f"{name} is easy to guess: set a random one, for example `openssl rand -hex 32`.")
    return value


def secret_and_previous(config, name, least_bytes, hint):
    """[the secret], and while it is rotated [the secret, the one of NAME_PREVIOUS]: the first makes, all are good."""
    current, previous_name = secret(config, name, least_bytes, hint), f"{name}_PREVIOUS"
    if not config.get(previous_name):
        return [current]
    previous = secret(config, previous_name, least_bytes, hint)
    if previous == current:
        raise SystemExit(f"{previous_name} is {name} itself: set the other secret of a rotation, or none.")
    return [current, previous]


def is_guessable(text):
    """Whether a patient guesser would come to it: repetitions, sequences, rows of keys, the words of examples."""
    # Here, since its lists of words are large, and most processes have no secret to judge.
    from zxcvbn import zxcvbn

    letters = re.sub("[^a-z]", "", text.lower())
    is_example = letters != "" and re.fullmatch(EXAMPLE_WORDS, letters) is not None
    return is_example or zxcvbn(text[:MOST_CHARACTERS_JUDGED])["guesses"] < LEAST_GUESSES


def integer(config, name, lowest, highest):
    try:
        value = int(str(config.get(name)))
    except ValueError:
        value = None
    if value is None or not lowest <= value <= highest:
        raise SystemExit(f"{name} must be a whole number from {lowest} to {highest}, not {config.get(name)!r}.")
    return value


def one_of(config, name, *values):
    """One of the words, the first by default."""
    value = config.get(name) or values[0]
    if value not in values:
        raise SystemExit(f"{name} must be {' or '.join(values)}, not {value!r}.")
    return value


def positive(config, name, default):
    """A positive number, decimals allowed."""
    text = str(config.get(name) or default)
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or float(text) == 0:
        raise SystemExit(f"{name} must be a positive number like 1 or 0.5, not {text!r}.")
    return float(text)


def listed(config, name):
    """The parts of a list that is separated by commas."""
    return [part.strip() for part in str(config.get(name) or "").split(",") if part.strip()]


def amqp_address(config):
    """Kombu's arguments for a connection to the broker. With amqps:// its certificate and host name are verified.

    AMQP_SSL_CA: the file of the authority's certificate; without one the system's authorities are trusted.
    """
    uri, ca = required(config, "AMQP_URI", AMQP_URI_HINT), config.get("AMQP_SSL_CA") or None
    parts = urlsplit(uri)
    if parts.scheme != "amqps":
        if ca:
            raise SystemExit("AMQP_SSL_CA is set, and AMQP_URI is no amqps:// address: nothing would be encrypted.")
        return {"hostname": uri}
    try:
        ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise SystemExit(f"AMQP_SSL_CA must be a file with an authority's certificate: {ca} is not, {error}.") from None
    return {
        "hostname": uri,
        "ssl": {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": ca, "server_hostname": parts.hostname},
    }


class Setting(DependencyProvider):
    """A whole number of the configuration, injected.

    settle_after_seconds = Setting("SETTLE_AFTER_SECONDS", lowest=0, highest=86400)
    """

    def __init__(self, name, lowest, highest):
        self.name, self.lowest, self.highest = name, lowest, highest

    def setup(self):
        self.value = integer(self.container.config, self.name, self.lowest, self.highest)

    def get_dependency(self, worker_ctx):
        return self.value
