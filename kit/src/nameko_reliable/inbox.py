"""What was handled already: events by their id, calls by theirs.

Both are rows (nameko_reliable.tables) written in the transaction of what they guard, so that the row and the effect are
there together or not at all; of two deliveries at once, the second waits for the first one's commit.
"""

import functools
import inspect


def once(method):
    """Run an RPC method in one transaction, and for each call once.

        @rpc
        @once
        def set_price(self, session, cake_id, price):
            …

    The session is given to the method; its caller doesn't see that argument. A call that the broker
    delivers again, because a replica died before it acknowledged, gets the first answer again.
    """

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        with self.db.transaction() as session:
            # None outside of a call, and a mock in a worker that nameko.testing's `worker_factory` made.
            if not isinstance(self.db.call_id, str):
                return method(self, session, *args, **kwargs)
            return self.db.answers.once(session, self.db.call_id, lambda: method(self, session, *args, **kwargs))

    signature = inspect.signature(method)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # `inspect` looks for it
        parameters=[p for name, p in signature.parameters.items() if name != "session"]
    )
    return run
