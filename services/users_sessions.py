"""Sessions: opened with a password, continued with refresh tokens; and the tokens that a session's device holds."""

import base64
import hmac
import time
import uuid
from contextlib import contextmanager

import jwt
from nameko.extensions import DependencyProvider
from sqlalchemy import select

from contracts.users import InvalidCredentials, InvalidSession, normal_password
from services.users_models import LoginFailure, TokenReused, User, UserSession, digest, log_security, normal_address

ACCESS_TOKEN_SECONDS = 15 * 60


class SessionTokens(DependencyProvider):
    """Signs access tokens (HS256, 15 minutes) and derives refresh tokens."""

    def setup(self):
        config = self.container.config
        self._secrets = [config["JWT_SECRET"], *filter(None, [config["JWT_SECRET_PREVIOUS"]])]

    def get_dependency(self, worker_ctx):
        return self

    def grant(self, user, refresh_token):
        """What a login answers: {access_token, token_type, expires_in (seconds), refresh_token}."""
        return {
            "access_token": self._issue(user),
            "token_type": "bearer",
            "expires_in": ACCESS_TOKEN_SECONDS,
            "refresh_token": refresh_token,
        }

    def _issue(self, user):
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

    def successors(self, refresh_token):
        """The refresh token that follows this one, derived with JWT_SECRET: the same each time it is derived.

        While JWT_SECRET is rotated, also the one that a replica with the other secret derives.
        """
        text = b"refresh token after " + refresh_token.encode()
        following = [hmac.digest(secret.encode(), text, "sha256") for secret in self._secrets]
        return [base64.urlsafe_b64encode(each).decode().rstrip("=") for each in following]


@contextmanager
def throttled_login(db, email, client_address):
    """Count the password check in the block as a failure; once the block succeeds, forget all failures of this login.

    Raises TooManyFailures while earlier failures ask for a wait.
    """
    # A hash: the address that was typed may be a password in the wrong field.
    failure = client_address or "", digest(normal_address(email) or email)
    with db.transaction() as session:
        LoginFailure.record(session, *failure)
    yield
    with db.transaction() as session:
        LoginFailure.forget(session, *failure)


def log_in(db, passwords, login):
    """(user, refresh token) of a session that the password opens. login: as contracts.users.Login.

    Raises InvalidCredentials. Makes its own transactions: a password is checked outside of them.
    """
    password = normal_password(login["password"])
    with db.transaction() as session:
        user = session.scalar(select(User).where(User.email == normal_address(login["email"])))
    refresh_token = None
    while refresh_token is None:
        checked_hash = user and user.password_hash
        if not passwords.matches(password, checked_hash) or not user.is_active:
            raise InvalidCredentials
        fresh_hash = passwords.hash(password) if passwords.is_outdated(checked_hash) else checked_hash
        with db.transaction() as session:
            user = session.get(User, user.id, with_for_update=True)
            # Else a new password, or another login's new hash, was stored meanwhile: check again.
            if user is not None and user.password_hash == checked_hash:
                user.password_hash = fresh_hash
                refresh_token = UserSession.open(session, user, login) if user.is_active else None
    return user, refresh_token


def refresh_session(session, refresh_token, tokens):
    """(user, the newest refresh token). The token is None when this one was used before: that ended the session.

    Raises InvalidSession.
    """
    device = UserSession.of_token(session, refresh_token, lock=True)
    if device is None:
        raise InvalidSession
    try:
        newest = device.rotate(session, refresh_token, tokens.successors)
    except TokenReused:
        newest = None
        session.delete(device)
        log_security(session, "a used refresh token came again", user_id=device.user_id, session_id=device.id)
    return session.get(User, device.user_id), newest
