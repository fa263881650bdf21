"""Accounts: found, listed, and changed, each in the caller's transaction."""

from sqlalchemy import delete, func, or_, select
from sqlalchemy.exc import IntegrityError

from contracts.names import normal_username
from contracts.types import NotAllowed, Taken, load_id
from contracts.users import LastAdmin, UserNotFound
from services.users_models import RESET, MailedToken, User, UserSession, log_security


def find_user(session, user_id, lock=False):
    """Raises UserNotFound."""
    user = session.get(User, load_id(user_id, "user_id"), with_for_update=lock)
    if user is None:
        raise UserNotFound(user_id)
    return user


def search_users(session, query):
    """(total, the users of the page), by id. query: as contracts.users.UserQuery."""
    conditions = []
    if query["q"]:
        conditions.append(
            or_(
                User.email.icontains(query["q"], autoescape=True),
                User.username.icontains(normal_username(query["q"]), autoescape=True),
            )
        )
    if query["role"] is not None:
        conditions.append(User.role == query["role"])
    page = select(User).where(*conditions).order_by(User.id).limit(query["limit"]).offset(query["offset"])
    total = session.scalar(select(func.count()).select_from(User).where(*conditions))
    return total, session.scalars(page)


def flush_unique(session):
    """Raises Taken, with the field, for an address or a username that another account has."""
    try:
        session.flush()
    except IntegrityError as error:
        taken_name = error.orig.diag.constraint_name in ("uq_users_username_folded", "uq_users_username_key")
        raise Taken("username" if taken_name else "email") from error


def lock_rights(session, admin_id=None):
    """One change of rights at a time: two admins who make each other customers at once would leave no admin.

    admin_id: the admin who asks, None for an operator. Raises NotAllowed for a former admin.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext("admins"))))
    if admin_id is not None:
        admin = session.get(User, load_id(admin_id, "admin_id"))
        if admin is None or admin.role != "admin" or not admin.is_active:
            raise NotAllowed


def change_rights(session, user, changes):
    """Give a locked account another role, or disable or enable it. Raises LastAdmin."""
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


def set_password(session, user, password_hash):
    """Set it; the account's sessions end, and the links of its mails for a new password are void."""
    user.password_hash = password_hash
    UserSession.end_all(session, user)
    session.execute(delete(MailedToken).where(MailedToken.user_id == user.id, MailedToken.purpose == RESET))
    log_security(session, "password changed", user_id=user.id)
