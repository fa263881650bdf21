"""Passwords: hashed with bcrypt outside the event loop, where at 12 rounds one takes 200 ms.

    passwords = Passwords()

    @hashing_rpc
    def login(self, email, password):
        …

A method that hashes is a `hashing_rpc`: however many of its calls come at once, other methods find workers.
Setting: BCRYPT_ROUNDS, for the hashes that are made from now on.
"""

import base64
import hashlib
import math
import os
import secrets
import time

import bcrypt
import eventlet
from eventlet import tpool
from eventlet.semaphore import Semaphore
from nameko.extensions import DependencyProvider, SharedExtension
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from nameko_reliable.errors import RpcTimeout, ServiceBusy
from nameko_reliable.rpc import Rpc

COMMON = frozenset(FREQUENCY_LISTS["passwords"])
# What the last hash counts in the measured time of one.
NEWEST_SHARE = 0.2
# A machine that gets busier must not make those late that were let in.
MARGIN = 1.5


class HashingLimit(SharedExtension):
    """Calls that hash: one for each core, in half of the workers at most. Some more wait, without a worker."""

    most_waiting = 32

    def __init__(self):
        self.hash_seconds = 0.0

    def setup(self):
        self._places = max(1, min(len(os.sched_getaffinity(0)), self.container.max_workers // 2))
        self._free = Semaphore(self._places)
        self._waiting = 0

    def enter(self, deadline):
        """Return once a call may take a worker and hash: a function to be called at its end.

        deadline: the call's, by the monotonic clock, or None. Raises ServiceBusy at once where the call would have to
        wait and not be over by then, or too many wait, and RpcTimeout where it waited in vain.
        """
        seconds_left = None if deadline is None else deadline - time.monotonic()
        # To a free place it goes in any case: a process that was frozen amid a hash has measured a time at which
        # nobody would hash any more, and nobody measure another.
        if self._free.balance <= 0:
            expected_seconds = MARGIN * (2 + self._waiting // self._places) * self.hash_seconds
            if self._waiting >= self.most_waiting or (seconds_left is not None and expected_seconds > seconds_left):
                raise ServiceBusy(self.container.service_name, max(1, math.ceil(expected_seconds)))
        self._waiting += 1
        try:
            with eventlet.Timeout(seconds_left, RpcTimeout(self.container.service_name)):
                self._free.acquire()
        finally:
            self._waiting -= 1
        return self._free.release

    def hash(self, function, *arguments):
        """Run it in a thread, and measure its time."""
        started_at = time.monotonic()
        result = tpool.execute(function, *arguments)
        self.hash_seconds += NEWEST_SHARE * (time.monotonic() - started_at - self.hash_seconds)
        return result


class HashingRpc(Rpc):
    limit = HashingLimit()


hashing_rpc = HashingRpc.decorator


class Passwords(DependencyProvider):
    """Takes passwords as they are to be compared: normalized, if they are to be."""

    limit = HashingLimit()

    def setup(self):
        self.rounds = self.container.config["BCRYPT_ROUNDS"]
        started_at = time.monotonic()
        # Checked when there is no hash, so that the answer takes as long.
        self._nobodys = self._hash(secrets.token_bytes())
        self.limit.hash_seconds = time.monotonic() - started_at

    def get_dependency(self, worker_ctx):
        return self

    def hash(self, password):
        return self.limit.hash(self._hash, _bcrypt_input(password)).decode()

    def matches(self, password, password_hash):
        """Whether the password is the hash's; with None for the hash false, after as long."""
        expected = self._nobodys if password_hash is None else password_hash.encode()
        return self.limit.hash(self._matches, _bcrypt_input(password), expected) and password_hash is not None

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
