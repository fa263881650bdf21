"""Authentication and authorization: access tokens, access decorators, allowed origins.

    @blp.route("/products", methods=["POST"])
    @admin
    def create_product(): ...

A decorator only marks the view. `authorize` enforces the mark before the request is parsed, so the order of
decorators cannot open a route. The app refuses to start when a view has no mark.
"""

import functools
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import jwt
from jwt.types import Options
from nameko.extensions import DependencyProvider
from werkzeug.datastructures import MultiDict

from contracts.types import MAX_BIGINT
from contracts.users import ROLES
from gateway.errors import AccessDenied, ForeignOrigin, Unauthenticated

ViewFunction = TypeVar("ViewFunction", bound=Callable[..., Any])

ALGORITHM = "HS256"
CLAIMS = ("exp", "iat", "sub", "email", "email_verified", "role", "jti")
PUBLIC, USER, OWNER, OWNER_OR_ADMIN, ADMIN = "public", "user", "owner", "owner or admin", "admin"
# How far the clock of the users service, which signs the tokens, may be ahead of ours.
MAX_SKEW_SECONDS = 30
# Verified tokens with their callers, about 1 kB each.
MAX_KEPT = 2000


@dataclass(frozen=True, slots=True)
class Caller:
    """email_verified: whether the address was verified when the token was made. expires_at: seconds since the epoch."""

    user_id: int
    email: str
    email_verified: bool
    role: str
    expires_at: float

    @property
    def is_admin(self) -> bool:
        return self.role == ADMIN

    @property
    def user_id_filter(self) -> int | None:
        """The user_id that restricts a call to the caller's own data; None, no restriction, for admins."""
        return None if self.is_admin else self.user_id


class AccessTokens(DependencyProvider):
    """Reads access tokens. Its config: JWT_SECRET and JWT_SECRET_PREVIOUS; either may have signed a token."""

    def setup(self) -> None:
        config = self.container.config
        self.secrets: list[str] = [config["JWT_SECRET"], *filter(None, [config["JWT_SECRET_PREVIOUS"]])]
        # A client sends its token with each request. Refused ones are not kept.
        self._caller_of = functools.lru_cache(maxsize=MAX_KEPT)(self._verified_caller)

    def get_dependency(self, worker_ctx: Any) -> "AccessTokens":
        return self

    def read(self, token: Any) -> Caller:
        """The token's Caller. Raises Unauthenticated with the reason."""
        if not isinstance(token, str):
            raise Unauthenticated("The token is not valid.")
        caller = self._caller_of(token)
        if caller.expires_at <= time.time():
            raise Unauthenticated("The token has expired.")
        return caller

    def _verified_caller(self, token: str) -> Caller:
        try:
            claims = self._verified_claims(token)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired.") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated("The token is not valid yet.") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated("The token is not valid.") from None
        sub, email, role, issued_at = claims["sub"], claims["email"], claims["role"], claims["iat"]
        is_valid = (
            re.fullmatch("[1-9][0-9]{0,18}", sub)
            and int(sub) <= MAX_BIGINT
            and isinstance(email, str)
            and role in ROLES
            and isinstance(issued_at, (int, float))
        )
        if not is_valid:
            raise Unauthenticated("The token is not valid.")
        if issued_at > time.time() + MAX_SKEW_SECONDS:
            raise Unauthenticated("The token is not valid yet.")
        return Caller(int(sub), email, claims["email_verified"] is True, role, int(claims["exp"]))

    def _verified_claims(self, token: str) -> dict[str, Any]:
        options: Options = {"require": list(CLAIMS), "verify_iat": False}
        for secret in self.secrets[:-1]:
            with suppress(jwt.InvalidSignatureError):
                return jwt.decode(token, secret, algorithms=[ALGORITHM], options=options)
        return jwt.decode(token, self.secrets[-1], algorithms=[ALGORITHM], options=options)

    def read_header(self, authorization: str | None) -> Caller | None:
        """The Caller of an Authorization header; None without one. Raises Unauthenticated."""
        if not authorization:
            return None
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("Only Bearer tokens are supported.")
        return self.read(token.strip())


def _mark(access: str) -> Callable[[ViewFunction], ViewFunction]:
    def decorator(view: ViewFunction) -> ViewFunction:
        view.access = access  # type: ignore[attr-defined]
        return view

    return decorator


public = _mark(PUBLIC)
user = _mark(USER)
# For other users the resource does not exist: the service compares the caller with the owner and answers 404.
owner = _mark(OWNER)
owner_or_admin = _mark(OWNER_OR_ADMIN)
admin = _mark(ADMIN)


def with_cookie(view: ViewFunction) -> ViewFunction:
    """Refuse foreign origins: the view reads a cookie, which browsers also send with requests of foreign pages."""
    view.with_cookie = True  # type: ignore[attr-defined]
    return view


def admin_when(parameter: str, value: str) -> Callable[[ViewFunction], ViewFunction]:
    """Only admins may send this value of this query parameter."""

    def decorator(view: ViewFunction) -> ViewFunction:
        view.admin_when = parameter, value  # type: ignore[attr-defined]
        return view

    return decorator


def authorize(view: Any, caller: Caller | None, token_error: str | None, query: MultiDict[str, str]) -> None:
    """Raise Unauthenticated or AccessDenied unless the caller may use the view. caller: None when anonymous.

    token_error: why the token that was sent is not valid. A public view ignores it.
    """
    access = view.access
    if hasattr(view, "admin_when"):
        parameter, value = view.admin_when
        if value in query.getlist(parameter):
            access = ADMIN
    if access == PUBLIC:
        return
    if caller is None:
        raise Unauthenticated(token_error)
    if access == ADMIN and not caller.is_admin:
        raise AccessDenied


class AllowedOrigins:
    """The origins whose pages may use cookies and WebSockets: that of FRONTEND_URL, and ALLOWED_ORIGINS."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.allowed = {_normalize_origin(url) for url in (config["FRONTEND_URL"], *config["ALLOWED_ORIGINS"])}

    def allows(self, origin: str) -> bool:
        """Whether the origin is one of them. A sandboxed page's "null" never is."""
        return _normalize_origin(origin) in self.allowed

    def check(self, origin: str | None, host: str | None) -> None:
        """Raise ForeignOrigin unless the origin is None, that of the same host, or an allowed one."""
        if origin is None or self.allows(origin):
            return
        if not host or _normalize_origin(origin).partition("://")[2] != host.lower():
            raise ForeignOrigin


def _normalize_origin(url: str) -> str:
    """The origin as browsers send it: without the scheme's default port."""
    try:
        parts = urlsplit(url.strip().lower())
        is_default_port = {"http": 80, "https": 443}.get(parts.scheme) == parts.port
    except ValueError:
        return ""
    host = parts.netloc.rpartition(":")[0] if is_default_port else parts.netloc
    return f"{parts.scheme}://{host}" if host else ""
