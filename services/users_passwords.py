"""Passwords, hashed with bcrypt in threads: at 12 rounds a hash takes 200 ms, which would block the event loop.

    passwords = Passwords()

    @hashing_rpc
    def login(self, email, password):
        …

A method that hashes is a `hashing_rpc`, so that any number of its calls leaves workers for other methods.
Setting: BCRYPT_ROUNDS, for new hashes.
"""

import base64
import hashlib
import math
import os
import secrets
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import ParamSpec, Self, TypeVar, cast

import bcrypt
import eventlet
from eventlet import tpool
from eventlet.semaphore import Semaphore
from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider, SharedExtension

from nameko_reliable.errors import RpcTimeout, ServiceBusy
from nameko_reliable.rpc import Rpc

P = ParamSpec("P")
T = TypeVar("T")

# bcrypt's own minimum.
MIN_ROUNDS = 4
# Weight of the newest measurement in the average time of a hash.
AVERAGE_WEIGHT = 0.2
# So that admitted calls meet their deadline on a machine that gets busier.
SAFETY_FACTOR = 1.5


def _common_passwords() -> str:
    """zxcvbn's 30,000 most common passwords, each between two newlines.

    Only the file of its lists is loaded, and not kept: its package also makes dictionaries of all of them.
    """
    package = find_spec("zxcvbn")
    spec = package and PathFinder.find_spec("frequency_lists", package.submodule_search_locations)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("zxcvbn has no frequency_lists")
    lists = module_from_spec(spec)
    spec.loader.exec_module(lists)
    return "\n{}\n".format("\n".join(lists.FREQUENCY_LISTS["passwords"]))


COMMON_PASSWORDS = _common_passwords()


class HashingLimit(SharedExtension):
    """Limits the calls that hash at once: one for each core, at most half of the workers. Others wait without one."""

    most_waiting = 32

    def __init__(self) -> None:
        self.hash_seconds = 0.0

    def setup(self) -> None:
        self._slots = max(1, min(len(os.sched_getaffinity(0)), self.container.max_workers // 2))
        self._free = Semaphore(self._slots)
        self._waiting = 0

    def enter(self, deadline: float | None) -> Callable[[], object]:
        """Wait until a call may take a worker and hash. Returns a function to be called at its end.

        deadline: of the call, by the monotonic clock, or None. Raises ServiceBusy at once if the call could not meet
        its deadline, or too many wait, and RpcTimeout if its deadline passed while it waited.
        """
        seconds_left = None if deadline is None else deadline - time.monotonic()
        # With a free slot a call always enters: a process that was frozen during a hash measured so long a time that it
        # would otherwise refuse all calls, and never measure again.
        if self._free.balance <= 0:
            expected_seconds = SAFETY_FACTOR * (2 + self._waiting // self._slots) * self.hash_seconds
            if self._waiting >= self.most_waiting or (seconds_left is not None and expected_seconds > seconds_left):
                raise ServiceBusy(self.container.service_name, max(1, math.ceil(expected_seconds)))
        self._waiting += 1
        try:
            with eventlet.Timeout(seconds_left, RpcTimeout(self.container.service_name)):
                self._free.acquire()
        finally:
            self._waiting -= 1
        return self._free.release

    def hash(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Run the function in a thread, and measure its time."""
        started_at = time.monotonic()
        result = tpool.execute(function, *arguments, **options)
        self.hash_seconds += AVERAGE_WEIGHT * (time.monotonic() - started_at - self.hash_seconds)
        return cast(T, result)


class HashingRpc(Rpc):
    limit = HashingLimit()


hashing_rpc = HashingRpc.decorator


class Passwords(DependencyProvider):
    """Hashes and compares passwords byte by byte. The caller normalizes them."""

    limit = HashingLimit()

    def setup(self) -> None:
        self.rounds = self.container.config["BCRYPT_ROUNDS"]
        # For accounts without a hash: a comparison with this one takes the same time. No password has it.
        self._decoy_hash = bcrypt.gensalt(self.rounds) + base64.b64encode(secrets.token_bytes(23), b"./").rstrip(b"=")
        self.limit.hash_seconds = _hash_seconds(self.rounds)

    def get_dependency(self, worker_ctx: WorkerContext) -> Self:
        return self

    def hash(self, password: str) -> str:
        return self.limit.hash(self._hash, _bcrypt_input(password)).decode()

    def matches(self, password: str, password_hash: str | None) -> bool:
        """Whether the password matches the hash. False without a hash, after the same time."""
        expected = self._decoy_hash if password_hash is None else password_hash.encode()
        return self.limit.hash(self._matches, _bcrypt_input(password), expected) and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash has another number of rounds than a new one."""
        return _rounds(password_hash.encode()) != self.rounds

    def is_common(self, password: str) -> bool:
        """Whether it is one of the 30,000 most common passwords."""
        return "\n" not in password and f"\n{password.lower()}\n" in COMMON_PASSWORDS

    def _hash(self, raw: bytes) -> bytes:
        return bcrypt.hashpw(raw, bcrypt.gensalt(self.rounds))

    def _matches(self, raw: bytes, expected: bytes) -> bool:
        matches = bcrypt.checkpw(raw, expected)
        # A hash with fewer rounds is faster. The time must not show it: n rounds take as long as 1 to n - 1 together.
        for rounds in range(_rounds(expected), self.rounds):
            bcrypt.hashpw(raw, bcrypt.gensalt(rounds))
        return matches


def _hash_seconds(rounds: int) -> float:
    """How long a hash takes. Measured with fewer rounds, to start sooner: one round less takes half as long."""
    measured_rounds = max(MIN_ROUNDS, rounds - 4)
    started_at = time.monotonic()
    bcrypt.hashpw(b"", bcrypt.gensalt(measured_rounds))
    return float((time.monotonic() - started_at) * 2 ** (rounds - measured_rounds))


def _rounds(password_hash: bytes) -> int:
    """12 of `$2b$12$…`."""
    return int(password_hash.split(b"$")[2])


def _bcrypt_input(password: str) -> bytes:
    """bcrypt takes 72 bytes without a NUL. Other passwords are hashed with SHA-256 first, so that every byte counts."""
    raw = password.encode(errors="surrogatepass")
    if len(raw) > 72 or b"\0" in raw:
        return base64.b64encode(hashlib.sha256(raw).digest())
    return raw
