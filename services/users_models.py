"""The tables of users."""

import hashlib
import logging
import math
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Self

from marshmallow import ValidationError
from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Row,
    Text,
    delete,
    func,
    or_,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedColumn, Session, mapped_column, validates

from contracts.names import username_key
from contracts.types import Email
from contracts.users import (
    InvalidSession,
    InvalidToken,
    TooManyFailures,
)
from nameko_reliable.sessions import after_commit
from nameko_reliable.tables import AnswerMixin, OutboxMixin

security = logging.getLogger("security")

REFRESH_TOKEN_LIFE = timedelta(days=30)
# Two tabs that refresh at the same time send the same token. That is not a theft.
REUSE_GRACE = timedelta(seconds=10)
MAX_SESSIONS = 50
SIGN_IN_LIFE = timedelta(minutes=10)
VERIFICATION, RESET = "email_verification", "password_reset"
MAILED_TOKEN_LIFE = {VERIFICATION: timedelta(hours=24), RESET: timedelta(minutes=30)}
# More mails than a stranger can request while the first token of a reset is valid.
MAX_MAILED_TOKENS = 100
FAILURE_WINDOW = timedelta(minutes=15)
# After this many failures a login must wait: for one account from one address, and from one address for all accounts.
ACCOUNT_FAILURES, ADDRESS_FAILURES = 6, 100
MAX_WAIT_SECONDS = 60
# Between two mails of one kind to one address.
MAIL_PAUSE = timedelta(minutes=1)
# At most MAX_MAILS in MAIL_WINDOW, the life of a reset's link: while more are refused, the last link is still valid.
MAX_MAILS, MAIL_WINDOW = 3, MAILED_TOKEN_LIFE[RESET]
# ops.resend can make the event of a request again for this time.
MAIL_REQUEST_LIFE = timedelta(days=1)


class Base(DeclarativeBase):
    pass


class OutboxEntry(OutboxMixin, Base):
    pass


class Answer(AnswerMixin, Base):
    pass


def _time_column() -> MappedColumn[datetime]:
    return mapped_column(DateTime(timezone=True), server_default=func.now())


def _user_id_column(**options: Any) -> MappedColumn[int]:
    return mapped_column(ForeignKey("users.id", ondelete="CASCADE"), **options)


class User(Base):
    """password_hash: None for a user who has only signed in with a provider.

    username_key: the normal form by which names are unique. None or outdated if a release before 0.1.0 wrote the name,
    and None for a name that clashed with an older account's when this column was added: see ops/normalize_names.py.
    email_verified_at: when the address was proven, by a mailed token or a sign-in provider.
    """

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(Text, unique=True)
    username: Mapped[str] = mapped_column(Text)
    username_key: Mapped[str | None] = mapped_column(Text)
    password_hash: Mapped[str | None] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text, server_default="customer")
    is_active: Mapped[bool] = mapped_column(Boolean, server_default="true")
    email_verified_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = _time_column()
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )

    __table_args__ = (
        Index("uq_users_username_folded", func.lower(username), unique=True),
        Index("uq_users_username_key", "username_key", unique=True),
    )

    @validates("username")
    def _update_key(self, _: str, username: str) -> str:
        self.username_key = username_key(username)
        return username


class ExternalIdentity(Base):
    """An account at a sign-in provider, identified by issuer and subject: the owner of an address may change."""

    __tablename__ = "external_identities"

    issuer: Mapped[str] = mapped_column(Text, primary_key=True)
    subject: Mapped[str] = mapped_column(Text, primary_key=True)
    user_id: Mapped[int] = _user_id_column(index=True)
    created_at: Mapped[datetime] = _time_column()


class SignIn(Base):
    """A pending sign-in with a provider: the secrets that check its callback, by the hash of its state."""

    __tablename__ = "sign_ins"

    state_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    nonce: Mapped[str] = mapped_column(Text)
    code_verifier: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)

    @classmethod
    def begin(cls, session: Session, state: str, nonce: str, code_verifier: str) -> None:
        session.add(
            cls(
                state_hash=digest(state),
                nonce=nonce,
                code_verifier=code_verifier,
                expires_at=func.now() + SIGN_IN_LIFE,
            )
        )

    @classmethod
    def take(cls, session: Session, state: str) -> Row[tuple[str, str]] | None:
        """Delete the sign-in with this state, and return its (nonce, code_verifier), or None without one."""
        begun = delete(cls).where(cls.state_hash == digest(state), cls.expires_at > func.now())
        return session.execute(begun.returning(cls.nonce, cls.code_verifier)).first()


class UserSession(Base):
    """A logged-in device with its chain of refresh tokens. Only the newest is valid. A logout deletes the row."""

    __tablename__ = "sessions"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    user_id: Mapped[int] = _user_id_column(index=True)
    user_agent: Mapped[str | None] = mapped_column(Text)
    client_address: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = _time_column()
    last_used_at: Mapped[datetime] = _time_column()
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)

    @classmethod
    def open(cls, session: Session, user: User, client: Mapping[str, Any]) -> str:
        """Open a session, and return its first refresh token. Beyond MAX_SESSIONS the least recently used ones end.

        user: locked. client: as contracts.users.ClientInfo.
        """
        newest = select(cls.id).where(cls.user_id == user.id).order_by(cls.last_used_at.desc()).limit(MAX_SESSIONS - 1)
        session.execute(delete(cls).where(cls.user_id == user.id, cls.id.not_in(newest)))
        refresh_token, expires_at = secrets.token_urlsafe(32), func.now() + REFRESH_TOKEN_LIFE
        opened = cls(
            user_id=user.id,
            user_agent=client["user_agent"],
            client_address=client["client_address"],
            expires_at=expires_at,
        )
        session.add(opened)
        session.flush()
        session.add(RefreshToken(token_hash=digest(refresh_token), session_id=opened.id, expires_at=expires_at))
        return refresh_token

    @classmethod
    def of_token(cls, session: Session, refresh_token: object) -> Self | None:
        """Lock and return the session of this token, which may have been used, or None."""
        if not isinstance(refresh_token, str):
            return None
        found = select(cls).join(RefreshToken).where(RefreshToken.token_hash == digest(refresh_token))
        return session.scalar(found.with_for_update(of=cls))

    @classmethod
    def end_all(cls, session: Session, user: User) -> None:
        session.execute(delete(cls).where(cls.user_id == user.id))

    def rotate(self, session: Session, refresh_token: str, successors: Callable[[str], list[str]]) -> str:
        """Return the newest refresh token: a new one, or the one that a refresh at the same time made.

        successors: a function from a refresh token to the next one, followed by those that replicas with another secret
        may have made instead. Raises InvalidSession, TokenReused.
        """
        now = session.execute(select(func.clock_timestamp())).scalar_one()
        token = session.get_one(RefreshToken, digest(refresh_token))
        if token.was_used(now):
            return self._newest_after(session, refresh_token, successors)
        token.replaced_at, self.last_used_at = now, now
        self.expires_at = now + REFRESH_TOKEN_LIFE
        following = successors(refresh_token)[0]
        session.add(RefreshToken(token_hash=digest(following), session_id=self.id, expires_at=self.expires_at))
        return following

    @staticmethod
    def _newest_after(session: Session, refresh_token: str, successors: Callable[[str], list[str]]) -> str:
        while True:
            following = {digest(each): each for each in successors(refresh_token)}
            token = session.scalar(select(RefreshToken).where(RefreshToken.token_hash.in_(following)))
            if token is None:
                # It was derived with a JWT_SECRET that is no longer configured.
                raise InvalidSession
            refresh_token = following[token.token_hash]
            if token.replaced_at is None:
                return refresh_token


class TokenReused(Exception):
    """A refresh token was used a second time, so two clients have it."""


class RefreshToken(Base):
    """replaced_at: when the token was used. A used token is kept, so that a second use is detected."""

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    replaced_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)

    def was_used(self, now: datetime) -> bool:
        """Raises InvalidSession for an expired token, and TokenReused for one that was used over REUSE_GRACE ago."""
        if self.expires_at <= now:
            raise InvalidSession
        if self.replaced_at is not None and now - self.replaced_at > REUSE_GRACE:
            raise TokenReused
        return self.replaced_at is not None


class MailedToken(Base):
    """A single-use secret in the link of a mail. purpose: a key of MAILED_TOKEN_LIFE."""

    __tablename__ = "mailed_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user_id: Mapped[int] = _user_id_column(index=True)
    purpose: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)

    @classmethod
    def new(cls, session: Session, user: User, purpose: str) -> str:
        """A new token. Beyond MAX_MAILED_TOKENS the oldest is deleted: each try of a mail makes one."""
        alike = (cls.user_id == user.id, cls.purpose == purpose)
        newest = select(cls.token_hash).where(*alike).order_by(cls.expires_at.desc()).limit(MAX_MAILED_TOKENS - 1)
        session.execute(delete(cls).where(*alike, cls.token_hash.not_in(newest)))
        token = secrets.token_urlsafe(32)
        expires_at = func.now() + MAILED_TOKEN_LIFE[purpose]
        session.add(cls(token_hash=digest(token), user_id=user.id, purpose=purpose, expires_at=expires_at))
        return token

    @classmethod
    def owner(cls, session: Session, token: str, purpose: str) -> User | None:
        """The account that the token was mailed to, or None if the token is not valid."""
        good = (cls.token_hash == digest(token), cls.purpose == purpose, cls.expires_at > func.now())
        return session.scalar(select(User).join(cls).where(*good, User.is_active))

    @classmethod
    def spend(cls, session: Session, token: str, purpose: str) -> User:
        """Delete the token, and return its account, locked. Raises InvalidToken."""
        user = cls.owner(session, token, purpose)
        if user is None:
            raise InvalidToken
        # The account is locked before its tokens, as everywhere, so two calls cannot deadlock.
        session.refresh(user, with_for_update=True)
        spent = delete(cls).where(cls.token_hash == digest(token)).returning(cls.user_id)
        if session.execute(spent).first() is None or not user.is_active:
            raise InvalidToken
        return user


class MailRequest(Base):
    """A request for a mail with a link, answered after the call: so the call takes the same time for any address.

    purpose: a key of MAILED_TOKEN_LIFE. answered_at: when its event was emitted, or would have been for an address
    without an account.
    """

    __tablename__ = "mail_requests"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(Text)
    answered_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    __table_args__ = (Index("ix_mail_requests_email_purpose", "email", "purpose"),)

    @classmethod
    def next(cls, session: Session) -> Self | None:
        """Lock and return the oldest unanswered request that is not locked, or None."""
        waiting = select(cls).where(cls.answered_at.is_(None)).order_by(cls.id).limit(1)
        return session.scalar(waiting.with_for_update(skip_locked=True))

    def exceeds_limit(self, session: Session) -> bool:
        """Whether a request of this address was answered within MAIL_PAUSE, or MAX_MAILS within MAIL_WINDOW.

        Locks the address.
        """
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"{self.purpose} {self.email}"))))
        alike = (MailRequest.email == self.email, MailRequest.purpose == self.purpose)
        now = func.clock_timestamp()
        too_many = or_(func.count() >= MAX_MAILS, func.max(MailRequest.answered_at) > now - MAIL_PAUSE)
        recent = select(too_many).where(*alike, MailRequest.answered_at > now - MAIL_WINDOW)
        return bool(session.scalar(recent))


class LoginFailure(Base):
    """A login that failed or is being checked. account_hash: of the typed address, which may have no account."""

    __tablename__ = "login_failures"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    client_address: Mapped[str] = mapped_column(Text)
    account_hash: Mapped[bytes] = mapped_column(LargeBinary)
    failed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())

    __table_args__ = (
        Index("ix_login_failures_client_address_failed_at", "client_address", "failed_at"),
        Index("ix_login_failures_failed_at", "failed_at"),
    )

    @classmethod
    def record(cls, session: Session, client_address: str, account_hash: bytes) -> Self:
        """Count a login before it is checked, so that concurrent logins get no more checks than consecutive ones.

        Raises TooManyFailures while a login must wait after earlier failures.
        """
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext("login " + client_address))))
        age = func.extract("epoch", func.clock_timestamp() - func.max(cls.failed_at))
        recent = select(func.count(), age).where(
            cls.client_address == client_address, cls.failed_at > func.clock_timestamp() - FAILURE_WINDOW
        )
        waits = [
            seconds_to_wait(session.execute(recent.where(cls.account_hash == account_hash)).one(), ACCOUNT_FAILURES),
            seconds_to_wait(session.execute(recent).one(), ADDRESS_FAILURES),
        ]
        if max(waits) > 0:
            raise TooManyFailures(math.ceil(max(waits)))
        failure = cls(client_address=client_address, account_hash=account_hash)
        session.add(failure)
        return failure

    @classmethod
    def forget(cls, session: Session, client_address: str, account_hash: bytes) -> None:
        session.execute(delete(cls).where(cls.client_address == client_address, cls.account_hash == account_hash))


def seconds_to_wait(recent: Row[tuple[int, Any]] | tuple[int, float], allowed: int) -> float:
    """1 s after the first failure beyond the limit, twice as long after each further one.

    recent: the number of failures, and the seconds since the last one.
    """
    failures, seconds_since_last = recent
    if failures < allowed:
        return 0
    return min(2 ** min(failures - allowed, 6), MAX_WAIT_SECONDS) - float(seconds_since_last)


def digest(token: str) -> bytes:
    """SHA-256 of a secret of 256 random bits, which can't be guessed. It is stored instead of the secret."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def normal_address(email: str | None) -> str | None:
    """The form that is stored. None if the address is not valid, and so not an account's."""
    try:
        return Email().deserialize(email)
    except ValidationError:
        return None


def log_security(session: Session, what: str, **fields: Any) -> None:
    """Log a change of an account's security, after the commit."""
    after_commit(session, lambda: security.warning(what, extra={"fields": fields}))


def forget_old(session: Session) -> None:
    """Delete expired rows."""
    expiring: tuple[Any, ...] = (UserSession, RefreshToken, MailedToken, SignIn)
    for model in expiring:
        session.execute(delete(model).where(model.expires_at < func.now()))
    session.execute(delete(LoginFailure).where(LoginFailure.failed_at < func.now() - FAILURE_WINDOW))
    session.execute(delete(MailRequest).where(MailRequest.answered_at < func.now() - MAIL_REQUEST_LIFE))
    Answer.forget_old(session)
