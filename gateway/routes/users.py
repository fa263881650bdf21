from flask import g

from contracts.errors import InvalidCredentials, Taken, UserNotFound
from contracts.schemas import Credentials, UserRegistration
from gateway.api import Blueprint
from gateway.auth import public, user
from gateway.errors import Unauthenticated
from gateway.schemas import TokenView, UserView

blp = Blueprint("users", __name__, description="Accounts")


@blp.route("/users/register", methods=["POST"])
@public
@blp.arguments(UserRegistration)
@blp.response(201, UserView)
@blp.problems(Taken)
def register(registration):
    """Open an account."""
    return g.shop.users.register(**registration)


@blp.route("/users/login", methods=["POST"])
@public
@blp.arguments(Credentials)
@blp.response(200, TokenView)
@blp.problems(InvalidCredentials)
def login(credentials):
    """Get an access token for an address and a password."""
    return g.shop.users.login(**credentials)


@blp.route("/users/me")
@user
@blp.response(200, UserView)
def me():
    """The caller's account."""
    try:
        return g.shop.users.get_user(user_id=g.caller.user_id)
    except UserNotFound:
        raise Unauthenticated("The account is gone.") from None
