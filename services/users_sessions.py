"""Sessions and their tokens. A login opens a session, and refresh tokens continue it."""

import base64
import hmac
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import jwt
from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from contracts.types import JsonObject, load_id
from contracts.users import InvalidCredentials, InvalidSession, SessionView, normal_password
from nameko_reliable.database import WorkerDatabase
from nameko_reliable.errors import RpcTimeout, ServiceUnavailable
from services.reading import Execute, ViewTable
from services.users_models import LoginFailure, TokenReused, User, UserSession, digest, log_security, normal_address
from services.users_passwords import Passwords

logger = logging.getLogger(__name__)

ACCESS_TOKEN_SECONDS = 15 * 60
SESSIONS = ViewTable(
    "sessions",
    SessionView(),
    current="EXISTS (SELECT FROM refresh_tokens WHERE session_id = sessions.id AND token_hash = %(token)s::bytea)",
)


class SessionTokens(DependencyProvider):
    """Signs access tokens (HS256, 15 minutes) and derives refresh tokens."""

    def setup(self) -> None:
        config = self.container.config
        self._secrets = [config["JWT_SECRET"], *filter(None, [config["JWT_SECRET_PREVIOUS"]])]

    def get_dependency(self, worker_ctx: WorkerContext) -> Self:
        return self

    def grant(self, user: User, refresh_token: str) -> JsonObject:
        """The answer of a login: {access_token, token_type, expires_in (seconds), refresh_token}."""
        return {
            "access_token": self._issue(user),
            "token_type": "bearer",
            "expires_in": ACCESS_TOKEN_SECONDS,
            "refresh_token": refresh_token,
        }

    def _issue(self, user: User) -> str:
        now = int(time.time())
        claims = {
            "sub": str(user.id),
            "email": user.email,
            "email_verified": user.email_verified_at is not None,
            "role": user.role,
            "iat": now,
            "exp": now + ACCESS_TOKEN_SECONDS,
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode(claims, self._secrets[0], algorithm="HS256")

    def successors(self, refresh_token: str) -> list[str]:
        """The refresh token that follows this one, derived from it with JWT_SECRET, so that it is always the same.

        While JWT_SECRET is being rotated, the list also has the one that a replica with the other secret derives.
        """
        text = b"refresh token after " + refresh_token.encode()
        digests = [hmac.digest(secret.encode(), text, "sha256") for secret in self._secrets]
        return [base64.urlsafe_b64encode(each).decode().rstrip("=") for each in digests]


@contextmanager
def throttled_password_check(db: WorkerDatabase, email: str, client_address: str | None) -> Iterator[None]:
    """Count a failure, then run the block, which checks a password. If it does not raise, forget all failures.

    The failures are those of this account from this client address. Raises TooManyFailures while a login must wait
    after earlier failures. If the block is late or the database fails, only the new failure is forgotten.
    """
    # A hash: the address that was typed may be a password in the wrong field.
    login_key = client_address or "", digest(normal_address(email) or email)
    with db.transaction() as session:
        failure = LoginFailure.record(session, *login_key)
    try:
        yield
        with db.transaction() as session:
            LoginFailure.forget(session, *login_key)
    except (ServiceUnavailable, RpcTimeout):
        _forget_if_possible(db, failure)
        raise


def _forget_if_possible(db: WorkerDatabase, failure: LoginFailure) -> None:
    try:
        with db.transaction(past_deadline=True) as session:
            session.execute(delete(LoginFailure).where(LoginFailure.id == failure.id))
    except ServiceUnavailable as error:
        logger.warning("a login that was not answered counts as a failure: %r", error)


def log_in(db: WorkerDatabase, passwords: Passwords, login: JsonObject) -> tuple[User, str]:
    """Open a session with a password: (user, refresh token). login: as contracts.users.Login.

    Raises InvalidCredentials. The password is checked outside of the transactions.
    """
    password = normal_password(login["password"])
    with db.transaction() as session:
        user = session.scalar(select(User).where(User.email == normal_address(login["email"])))
    while True:
        checked_hash = user.password_hash if user is not None else None
        matches = passwords.matches(password, checked_hash)
        if user is None or checked_hash is None or not matches or not user.is_active:
            raise InvalidCredentials
        fresh_hash = passwords.hash(password) if passwords.is_outdated(checked_hash) else checked_hash
        with db.transaction() as session:
            user = session.get(User, user.id, with_for_update=True)
            # If the account was disabled or got another hash meanwhile, check again.
            if user is not None and user.is_active and user.password_hash == checked_hash:
                user.password_hash = fresh_hash
                return user, UserSession.open(session, user, login)


def refresh_session(session: Session, refresh_token: str, tokens: SessionTokens) -> tuple[User, str | None]:
    """(user, the newest refresh token). The token is None if this one was used before, which ends the session.

    Raises InvalidSession.
    """
    user_session = UserSession.of_token(session, refresh_token)
    if user_session is None:
        raise InvalidSession
    try:
        newest: str | None = user_session.rotate(session, refresh_token, tokens.successors)
    except TokenReused:
        newest = None
        session.delete(user_session)
        log_security(
            session, "a used refresh token came again", user_id=user_session.user_id, session_id=user_session.id
        )
    return session.get_one(User, user_session.user_id), newest


def read_sessions(execute: Execute, user_id: int, refresh_token: object) -> list[JsonObject]:
    """The answer of `list_sessions`."""
    return SESSIONS.find(
        execute,
        "WHERE user_id = %(user_id)s::bigint AND expires_at > now() ORDER BY last_used_at DESC, id DESC",
        user_id=load_id(user_id, "user_id"),
        token=digest(refresh_token) if isinstance(refresh_token, str) else None,
    )
