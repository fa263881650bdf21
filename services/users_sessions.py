"""Sessions: opened with a password, kept up with refresh tokens; and the tokens that a session's device holds."""

import base64
import hmac
import time
import uuid
from contextlib import contextmanager

import jwt
from nameko.extensions import DependencyProvider
from sqlalchemy import select

from contracts.users import InvalidCredentials, InvalidSession, normal_password
from services.users_models import LoginFailure, TokenReused, User, UserSession, digest, normal_address, tell_security

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
        """The refresh token that follows: the same for whoever refreshes at once or again, unguessable without us.

        And while JWT_SECRET is rotated the one that a replica with the other secret makes.
        """
        text = b"refresh token after " + refresh_token.encode()
        following = [hmac.digest(secret.encode(), text, "sha256") for secret in self._secrets]
        return [base64.urlsafe_b64encode(each).decode().rstrip("=") for each in following]


@contextmanager
def counted_try(db, email, client_address):
    """A try of a password in the block: one more failure of this address, forgotten with those before once it succeeds.

    Raises TooManyFailures while those that have failed ask for a wait.
    """
    # Of the address that was typed, whether or not it is somebody's: it may be a password in the wrong field.
    failure = client_address or "", digest(normal_address(email) or email)
    with db.transaction() as session:
        LoginFailure.note(session, *failure)
    yield
    with db.transaction() as session:
        LoginFailure.forget(session, *failure)


def log_in(db, passwords, login):
    """(user, refresh token) of a session that the password opens. login: as contracts.users.Login.

    Raises InvalidCredentials. In transactions of its own, as no password is checked within one.
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
            # Else it changed while we checked, by a new password or by another login's new hash: check again.
            if user is not None and user.password_hash == checked_hash:
                user.password_hash = fresh_hash
                refresh_token = UserSession.open(session, user, login) if user.is_active else None
    return user, refresh_token


def refresh_session(session, refresh_token, tokens):
    """(user, the newest refresh token), None for the token of a session that was ended, as this one came again.

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
        tell_security(session, "a used refresh token came again", user_id=device.user_id, session_id=device.id)
    return session.get(User, device.user_id), newest
