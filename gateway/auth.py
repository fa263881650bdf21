"""Who calls, and who may: access tokens, access decorators, origins.

    @blp.route("/products", methods=["POST"])
    @admin
    def create_product(): ...

A decorator only marks the view; `admit` enforces the mark before anything of the request is
looked at, so the order of decorators can't open a route. The app refuses to start with a view
that has no mark.
"""

import re
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import jwt
from nameko.extensions import DependencyProvider

from contracts.schemas import MAX_BIGINT
from extensions.settings import secret
from gateway.errors import AccessDenied, ForeignOrigin, Unauthenticated

ALGORITHM = "HS256"
CLAIMS = ("exp", "iat", "sub", "email", "role", "jti")
MIN_SECRET_BYTES = 32
PUBLIC, USER, ADMIN = "public", "user", "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """expires_at: seconds since the epoch."""

    user_id: int
    email: str
    role: str
    expires_at: float

    @property
    def is_admin(self):
        return self.role == ADMIN

    @property
    def own(self):
        """The user_id that limits a call to the caller's own things; None, no limit, for admins."""
        return None if self.is_admin else self.user_id


class Tokens(DependencyProvider):
    """Reads access tokens with config's JWT_SECRET."""

    def setup(self):
        hint = "the secret that signs access tokens, 32 bytes or more, the same for users and gateway."
        self.secret = secret(self.container.config, "JWT_SECRET", MIN_SECRET_BYTES, hint).encode()

    def get_dependency(self, worker_ctx):
        return self

    def read(self, token):
        """The token's Caller; raises Unauthenticated with the reason."""
        try:
            claims = jwt.decode(
                token, self.secret, algorithms=[ALGORITHM], options={"require": list(CLAIMS), "verify_iat": False}
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired.") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated("The token is not valid.") from None
        sub, email, role = claims["sub"], claims["email"], claims["role"]
        if not re.fullmatch("[1-9][0-9]{0,18}", sub) or int(sub) > MAX_BIGINT or not isinstance(email, str):
            raise Unauthenticated("The token is not valid.")
        return Caller(int(sub), email, role, claims["exp"])

    def caller(self, authorization):
        """The Caller of an Authorization header, None without one; raises Unauthenticated."""
        if not authorization:
            return None
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("Only Bearer tokens are known.")
        return self.read(token.strip())


def _mark(view, access):
    view.access = access
    return view


public = partial(_mark, access=PUBLIC)
user = partial(_mark, access=USER)
admin = partial(_mark, access=ADMIN)


def admin_when(parameter, value):
    """Only admins may send this value of this query parameter."""

    def decorator(view):
        view.admin_when = parameter, value
        return view

    return decorator


def admit(view, authorization, query, tokens):
    """The Caller, or None, when `view` is open to them; raises Unauthenticated or AccessDenied."""
    needs = view.access
    if hasattr(view, "admin_when"):
        parameter, value = view.admin_when
        if value in query.getlist(parameter):
            needs = ADMIN
    try:
        caller = tokens.caller(authorization)
    except Unauthenticated:
        if needs == PUBLIC:
            return None
        raise
    if needs != PUBLIC and caller is None:
        raise Unauthenticated
    if needs == ADMIN and not caller.is_admin:
        raise AccessDenied
    return caller


class Origins:
    """The origins whose pages may use cookies and WebSockets: FRONTEND_URL's and ALLOWED_ORIGINS."""

    def __init__(self, config):
        urls = [config.get("FRONTEND_URL") or "", *str(config.get("ALLOWED_ORIGINS") or "").split(",")]
        self.allowed = {_origin(url) for url in urls if url.strip()}

    def check(self, origin, host):
        """Raise ForeignOrigin unless there is none, or it is the same host's or an allowed one."""
        if origin is None or _origin(origin) in self.allowed:
            return
        if not host or _origin(origin).partition("://")[2] != host.lower():
            raise ForeignOrigin


def _origin(url):
    try:
        parts = urlsplit(url.strip().lower())
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""
