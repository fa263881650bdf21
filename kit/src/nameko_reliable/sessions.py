"""Functions that run once a session's transaction has committed."""

from collections.abc import Callable

from sqlalchemy import event
from sqlalchemy.orm import Session


def after_commit(session: Session, function: Callable[[], object]) -> None:
    """Call the function once the session's transaction has committed. A rollback drops it; savepoints do not count."""
    if "after_commit" not in session.info:
        session.info["after_commit"] = []
        event.listen(session, "after_commit", _call_functions)
        event.listen(session, "after_rollback", _forget_functions)
    session.info["after_commit"].append(function)


def _call_functions(session: Session) -> None:
    if not session.in_nested_transaction():
        functions, session.info["after_commit"] = session.info["after_commit"], []
        for function in functions:
            function()


def _forget_functions(session: Session) -> None:
    if not session.in_nested_transaction():
        session.info["after_commit"] = []
