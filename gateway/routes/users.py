from flask import g

from contracts.types import JsonObject, NotAllowed, Taken
from contracts.users import (
    AddressVerification,
    InvalidToken,
    LastAdmin,
    PasswordChange,
    PasswordReset,
    PasswordResetRequest,
    Profile,
    SessionNotFound,
    SessionView,
    TooManyFailures,
    UserChanges,
    UserNotFound,
    UserPageView,
    UserRegistration,
    UserView,
)
from gateway import cookies
from gateway.api import Blueprint
from gateway.auth import admin, owner, public, user, with_cookie
from gateway.errors import Unauthenticated
from gateway.limits import limited
from gateway.paging import PAGE_HEADERS, page_headers
from gateway.schemas import AcceptedView, UserQuery
from nameko_reliable.errors import ServiceBusy

blp = Blueprint("users", __name__, description="Accounts")


@blp.route("/users/register", methods=["POST"])
@public
@limited("register")
@blp.body(UserRegistration())
@blp.response(201, UserView)
@blp.problems(ServiceBusy, Taken)
def register(registration: JsonObject) -> JsonObject:
    """Open an account. A mail asks to verify the address."""
    return g.shop.users.register(**registration)


@blp.route("/users/password-reset", methods=["POST"])
@public
@limited("reset")
@blp.body(PasswordResetRequest())
@blp.response(202, AcceptedView)
def request_password_reset(request: JsonObject) -> JsonObject:
    """Mail a link for a new password, if the account exists. The answer does not reveal whether it does."""
    g.shop.users.request_password_reset(**request)
    return {"detail": "If this address has an account, a mail with a link is on its way to it."}


@blp.route("/users/password-reset/confirm", methods=["POST"])
@public
@limited("reset")
@blp.body(PasswordReset())
@blp.response(204)
@blp.problems(ServiceBusy, InvalidToken)
def reset_password(reset: JsonObject) -> None:
    """Set a new password with the token of the mailed link. All sessions of the account end."""
    g.shop.users.reset_password(**reset)


@blp.route("/users/verify-email", methods=["POST"])
@public
@limited("reset")
@blp.body(AddressVerification())
@blp.response(204)
@blp.problems(InvalidToken)
def verify_email(verification: JsonObject) -> None:
    """Verify the account's address with the token of the mailed link."""
    g.shop.users.verify_email(**verification)


@blp.route("/users/me")
@user
@blp.response(200, UserView)
def me() -> JsonObject:
    """The caller's account."""
    try:
        return g.shop.users.get_user(user_id=g.caller.user_id)
    except UserNotFound:
        raise Unauthenticated("The account no longer exists.") from None


@blp.route("/users/me", methods=["PATCH"])
@user
@blp.body(Profile())
@blp.response(200, UserView)
@blp.problems(Taken, UserNotFound)
def update_profile(profile: JsonObject) -> JsonObject:
    """Change the caller's name."""
    return g.shop.users.update_profile(user_id=g.caller.user_id, **profile)


@blp.route("/users/me/password", methods=["POST"])
@user
@limited("login")
@blp.body(PasswordChange())
@blp.response(204)
@blp.problems(ServiceBusy, TooManyFailures, UserNotFound)
def change_password(change: JsonObject) -> None:
    """Set a new password. All sessions of the account end, including this one."""
    g.shop.users.change_password(user_id=g.caller.user_id, **change, client_address=g.client["client_address"])


@blp.route("/users/me/verification", methods=["POST"])
@user
@limited("reset")
@blp.response(202, AcceptedView)
@blp.problems(UserNotFound)
def request_verification() -> JsonObject:
    """Send the verification mail again. A verified address gets none."""
    g.shop.users.request_verification(user_id=g.caller.user_id)
    return {"detail": "Unless your address is already verified, a mail with a link is on its way to it."}


@blp.route("/users/me/sessions")
@user
@with_cookie
@blp.request_cookie(cookies.REFRESH, required=False)
@blp.response(200, SessionView(many=True))
def list_sessions() -> list[JsonObject]:
    """The caller's sessions, last used first. `current` marks the session of the cookie."""
    return g.shop.users.list_sessions(user_id=g.caller.user_id, refresh_token=cookies.read_refresh())


@blp.route("/users/me/sessions/<id:session_id>", methods=["DELETE"])
@owner
@with_cookie
@blp.response(204)
@blp.problems(SessionNotFound)
def end_session(session_id: int) -> None:
    """End one of the caller's sessions. It gets no new access token; its last one soon expires."""
    g.shop.users.end_session(user_id=g.caller.user_id, session_id=session_id)


@blp.route("/users")
@admin
@blp.arguments(UserQuery, location="query")
@blp.response(200, UserPageView, headers=PAGE_HEADERS)
def list_users(query: JsonObject) -> tuple[JsonObject, int, dict[str, str]]:
    """All accounts, ordered by id. q: a part of the address or the name."""
    page = g.shop.users.list_users(**query)
    return page, 200, page_headers(query, page["total"])


@blp.route("/users/<id:user_id>", methods=["PATCH"])
@admin
@blp.body(UserChanges())
@blp.response(200, UserView)
@blp.problems(UserNotFound, LastAdmin, NotAllowed)
def update_user(changes: JsonObject, user_id: int) -> JsonObject:
    """Change an account's role, or disable or enable it. A new role or disabling ends its sessions."""
    return g.shop.users.update_user(user_id=user_id, admin_id=g.caller.user_id, **changes)
