"""Reads accounts, and finds and changes them in the caller's transaction."""

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from contracts.names import normal_username
from contracts.types import JsonObject, NotAllowed, Taken, load_id
from contracts.users import LastAdmin, UserNotFound, UserView
from services.reading import Execute, ViewTable, pattern_of
from services.users_models import RESET, MailedToken, User, UserSession, log_security

USERS = ViewTable("users", UserView())


def find_user(session: Session, user_id: int, lock: bool = False) -> User:
    """Raises UserNotFound."""
    user = session.get(User, load_id(user_id, "user_id"), with_for_update=lock)
    if user is None:
        raise UserNotFound(user_id)
    return user


def read_user(execute: Execute, user_id: int) -> JsonObject:
    """Raises UserNotFound."""
    users = USERS.find(execute, "WHERE id = %(id)s::bigint", id=load_id(user_id, "user_id"))
    if not users:
        raise UserNotFound(user_id)
    return users[0]


def read_users(execute: Execute, query: Mapping[str, Any]) -> tuple[int, list[JsonObject]]:
    """(total, the users of the page), by id. query: as contracts.users.UserQuery."""
    conditions: list[str] = []
    parameters: JsonObject = {}
    if query["q"]:
        conditions.append("(email ILIKE %(email)s::text OR username ILIKE %(username)s::text)")
        parameters["email"] = pattern_of(query["q"])
        parameters["username"] = pattern_of(normal_username(query["q"]))
    if query["role"] is not None:
        conditions.append("role = %(role)s::text")
        parameters["role"] = query["role"]
    return USERS.page(execute, conditions, "id", query["limit"], query["offset"], **parameters)


def flush_unique(session: Session) -> None:
    """Flush. Raises Taken, with the field, for an address or a username of another account."""
    try:
        session.flush()
    except IntegrityError as error:
        constraint = cast(Any, error.orig).diag.constraint_name
        is_name = constraint in ("uq_users_username_folded", "uq_users_username_key")
        raise Taken("username" if is_name else "email") from error


def lock_rights(session: Session, admin_id: int | None = None) -> None:
    """Allow one change of rights at a time: two admins who demote each other at once would leave no admin.

    admin_id: the calling admin, None for an operator. Raises NotAllowed for a former admin.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext("admins"))))
    if admin_id is not None:
        admin = session.get(User, load_id(admin_id, "admin_id"))
        if admin is None or admin.role != "admin" or not admin.is_active:
            raise NotAllowed


def change_rights(session: Session, user: User, changes: JsonObject) -> None:
    """Change a locked account's role, or disable or enable it. Raises LastAdmin."""
    role, is_active = changes.get("role", user.role), changes.get("is_active", user.is_active)
    if (role, is_active) == (user.role, user.is_active):
        return
    others = select(User.id).where(User.id != user.id, User.role == "admin", User.is_active)
    if user.role == "admin" and user.is_active and not session.scalar(select(others.exists())):
        raise LastAdmin
    if role != user.role or not is_active:
        UserSession.end_all(session, user)
    user.role, user.is_active = role, is_active
    session.flush()
    log_security(session, "rights changed", user_id=user.id, role=role, is_active=is_active)


def set_password(session: Session, user: User, password_hash: str | None) -> None:
    """Set the hash, end the account's sessions, and delete its tokens for a new password."""
    user.password_hash = password_hash
    UserSession.end_all(session, user)
    session.execute(delete(MailedToken).where(MailedToken.user_id == user.id, MailedToken.purpose == RESET))
    log_security(session, "password changed", user_id=user.id)
