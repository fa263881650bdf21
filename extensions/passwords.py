"""Passwords: hashed with bcrypt outside the event loop, where at 12 rounds one takes 200 ms.

Setting: BCRYPT_ROUNDS, for the hashes that are made from now on.
"""

import base64
import hashlib
import secrets

import bcrypt
from nameko.extensions import DependencyProvider
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from extensions.threads import in_thread

COMMON = frozenset(FREQUENCY_LISTS["passwords"])


class Passwords(DependencyProvider):
    """Takes passwords as they are to be compared: normalized, if they are to be."""

    def setup(self):
        self.rounds = self.container.config["BCRYPT_ROUNDS"]
        # Checked when there is no hash, so that the answer takes as long.
        self._nobodys = self._hash(secrets.token_bytes())

    def get_dependency(self, worker_ctx):
        return self

    def hash(self, password):
        return in_thread(self._hash, _bcrypt_input(password)).decode()

    def matches(self, password, password_hash):
        """Whether the password is the hash's; with None for the hash false, after as long."""
        expected = self._nobodys if password_hash is None else password_hash.encode()
        return in_thread(self._matches, _bcrypt_input(password), expected) and password_hash is not None

    def is_outdated(self, password_hash):
        """Whether the hash was made with other rounds than one made now."""
        return _rounds(password_hash.encode()) != self.rounds

    def is_common(self, password):
        """Whether it is among the 30,000 that people use most: the first that a guesser tries."""
        return password.lower() in COMMON

    def _hash(self, raw):
        return bcrypt.hashpw(raw, bcrypt.gensalt(self.rounds))

    def _matches(self, raw, expected):
        matches = bcrypt.checkpw(raw, expected)
        # One of n rounds takes as long as all below n: a hash of fewer rounds must not be known by its speed.
        for rounds in range(_rounds(expected), self.rounds):
            bcrypt.hashpw(raw, bcrypt.gensalt(rounds))
        return matches


def _rounds(password_hash):
    """Of `$2b$12$…`."""
    return int(password_hash.split(b"$")[2])


def _bcrypt_input(password):
    """bcrypt takes 72 bytes without a NUL; what it can't take whole is hashed first, so that no byte is lost."""
    raw = password.encode(errors="surrogatepass")
    if len(raw) > 72 or b"\0" in raw:
        return base64.b64encode(hashlib.sha256(raw).digest())
    return raw
