"""Each event and each call has its effect once, however often it is delivered.

A row (nameko_reliable.tables) records the id of an event, or the id and the answer of a call. It is written in the
transaction of the effect, so both are committed or neither is. Of two concurrent deliveries, the second one waits until
the first one's transaction has ended.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.orm import Session

P = ParamSpec("P")
R = TypeVar("R")


def once(method: Callable[Concatenate[Any, Session, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Run an RPC method in one transaction, and only once for each call.

        @rpc
        @once
        def set_price(self, session, cake_id, price):
            …

    The caller does not pass the session. The broker delivers a call again if a replica died before it acknowledged the
    call. The repeated call gets the first answer, and the method does not run again. The answer is that of the whole
    call, so such a method can't call another one of its service.
    """

    @functools.wraps(method)
    def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        # The id is None outside of a call, and a mock in a worker from nameko.testing's `worker_factory`.
        if not isinstance(self.db.call_id, str):
            with self.db.transaction() as session:
                return method(self, session, *args, **kwargs)
        if self.db.is_answered:
            raise RuntimeError("A call has one answer, so only one method with @once can run in it.")
        self.db.is_answered = True
        with self.db.transaction() as session:
            answer: R = self.db.answers.once(session, self.db.call_id, lambda: method(self, session, *args, **kwargs))
            return answer

    signature = inspect.signature(method)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # `inspect` reads it
        parameters=[p for name, p in signature.parameters.items() if name != "session"]
    )
    return run
