"""The tables of users."""

import hashlib
import logging
import math
import secrets
from datetime import datetime, timedelta

from marshmallow import ValidationError
from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Text,
    delete,
    func,
    or_,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, validates

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
# Two tabs that refresh at once send the same token, which is no theft.
REUSE_GRACE = timedelta(seconds=10)
MAX_SESSIONS = 50
SIGN_IN_LIFE = timedelta(minutes=10)
VERIFICATION, RESET = "email_verification", "password_reset"
MAILED_TOKEN_LIFE = {VERIFICATION: timedelta(hours=24), RESET: timedelta(minutes=30)}
# More than a stranger can have mailed while the first of a reset is good.
MAX_MAILED_TOKENS = 100
FAILURE_WINDOW = timedelta(minutes=15)
# After this many failures a login has to wait: for one account from one address, and from one address in all.
ACCOUNT_FAILURES, ADDRESS_FAILURES = 6, 100
MAX_WAIT_SECONDS = 60
# Between two mails of one kind to one address, however often they are asked for.
MAIL_PAUSE = timedelta(minutes=1)
# At most this many in the life of a reset's link: while more are refused, the last one's link is still good.
MAX_MAILS, MAIL_WINDOW = 3, MAILED_TOKEN_LIFE[RESET]
# So long ops.resend can make the event of a request again.
MAIL_REQUEST_LIFE = timedelta(days=1)


class Base(DeclarativeBase):
    pass


class OutboxEntry(OutboxMixin, Base):
    pass


class Answer(AnswerMixin, Base):
    pass


def _time_column():
    return mapped_column(DateTime(timezone=True), server_default=func.now())


def _user_id_column(**options):
    return mapped_column(ForeignKey("users.id", ondelete="CASCADE"), **options)


class User(Base):
    """password_hash: None for a user who has only signed in elsewhere.

    username_key: what two names are compared by. None, or out of date, where a release before 0.1.0 wrote the name, and
    for a name that clashed with an older account's when this column was made: see ops/normalize_names.py.
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
    def _update_key(self, _, username):
        self.username_key = username_key(username)
        return username


class ExternalIdentity(Base):
    """An account at a sign-in provider: issuer and subject, never the address, which may change hands."""

    __tablename__ = "external_identities"

    issuer: Mapped[str] = mapped_column(Text, primary_key=True)
    subject: Mapped[str] = mapped_column(Text, primary_key=True)
    user_id: Mapped[int] = _user_id_column(index=True)
    created_at: Mapped[datetime] = _time_column()


class SignIn(Base):
    """A sign-in elsewhere that is under way: the secrets that its answer is checked with, by the hash of its state."""

    __tablename__ = "sign_ins"

    state_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    nonce: Mapped[str] = mapped_column(Text)
    code_verifier: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)

    @classmethod
    def begin(cls, session, authorization):
        session.add(
            cls(
                state_hash=digest(authorization.state),
                nonce=authorization.nonce,
                code_verifier=authorization.code_verifier,
                expires_at=func.now() + SIGN_IN_LIFE,
            )
        )

    @classmethod
    def take(cls, session, state):
        """(nonce, code_verifier) of the sign-in with this state, once; None without one."""
        begun = delete(cls).where(cls.state_hash == digest(state), cls.expires_at > func.now())
        return session.execute(begun.returning(cls.nonce, cls.code_verifier)).first()


class UserSession(Base):
    """A device that is logged in: a chain of refresh tokens, of which the newest is good. An end deletes the row."""

    __tablename__ = "sessions"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    user_id: Mapped[int] = _user_id_column(index=True)
    user_agent: Mapped[str | None] = mapped_column(Text)
    client_address: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = _time_column()
    last_used_at: Mapped[datetime] = _time_column()
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)

    @classmethod
    def open(cls, session, user, client):
        """Open a session and return its first refresh token. Beyond MAX_SESSIONS, those unused for longest end.

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
    def of_token(cls, session, refresh_token, lock=False):
        """The session that this token belongs to, used or not; None without one."""
        if not isinstance(refresh_token, str):
            return None
        found = select(cls).join(RefreshToken).where(RefreshToken.token_hash == digest(refresh_token))
        return session.scalar(found.with_for_update(of=cls) if lock else found)

    @classmethod
    def end_all(cls, session, user):
        session.execute(delete(cls).where(cls.user_id == user.id))

    def rotate(self, session, refresh_token, successors):
        """Return the newest refresh token: one made now, or the one that a refresh at the same time made.

        successors: a function from a refresh token to the one that follows it, then those that replicas with another
        secret may have made in its place. Raises InvalidSession, and TokenReused for a token that was used more than
        REUSE_GRACE ago.
        """
        now = session.scalar(select(func.clock_timestamp()))
        token = session.get(RefreshToken, digest(refresh_token))
        if token.expires_at <= now:
            raise InvalidSession
        if token.replaced_at is not None:
            if now - token.replaced_at > REUSE_GRACE:
                raise TokenReused
            return self._newest_after(session, refresh_token, successors)
        token.replaced_at, self.last_used_at = now, now
        self.expires_at = now + REFRESH_TOKEN_LIFE
        following = successors(refresh_token)[0]
        session.add(RefreshToken(token_hash=digest(following), session_id=self.id, expires_at=self.expires_at))
        return following

    @staticmethod
    def _newest_after(session, refresh_token, successors):
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
    """A used refresh token came again, so two clients have it."""


class RefreshToken(Base):
    """replaced_at: when it was used. A used token is kept, so that its second use is noticed."""

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    replaced_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)


class MailedToken(Base):
    """A single-use secret that a mail's link carries. purpose: a key of MAILED_TOKEN_LIFE."""

    __tablename__ = "mailed_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user_id: Mapped[int] = _user_id_column(index=True)
    purpose: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)

    @classmethod
    def new(cls, session, user, purpose):
        """A new token. Beyond MAX_MAILED_TOKENS the oldest ends: a mail that is tried for a day makes many."""
        alike = (cls.user_id == user.id, cls.purpose == purpose)
        newest = select(cls.token_hash).where(*alike).order_by(cls.expires_at.desc()).limit(MAX_MAILED_TOKENS - 1)
        session.execute(delete(cls).where(*alike, cls.token_hash.not_in(newest)))
        token = secrets.token_urlsafe(32)
        expires_at = func.now() + MAILED_TOKEN_LIFE[purpose]
        session.add(cls(token_hash=digest(token), user_id=user.id, purpose=purpose, expires_at=expires_at))
        return token

    @classmethod
    def owner(cls, session, token, purpose):
        """The account that the token was mailed to, None unless the token is good."""
        good = (cls.token_hash == digest(token), cls.purpose == purpose, cls.expires_at > func.now())
        return session.scalar(select(User).join(cls).where(*good, User.is_active))

    @classmethod
    def spend(cls, session, token, purpose):
        """The account that the token was mailed to, locked. Raises InvalidToken."""
        user = cls.owner(session, token, purpose)
        if user is None:
            raise InvalidToken
        # The account is locked before its tokens, here as elsewhere: the other order could deadlock.
        session.refresh(user, with_for_update=True)
        spent = delete(cls).where(cls.token_hash == digest(token)).returning(cls.user_id)
        if session.execute(spent).first() is None or not user.is_active:
            raise InvalidToken
        return user


class MailRequest(Base):
    """A request for a mail with a link. It is answered after the call, which so takes equally long for any address.

    purpose: a key of MAILED_TOKEN_LIFE. answered_at: when its event was emitted, or, for an address without an account,
    would have been.
    """

    __tablename__ = "mail_requests"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(Text)
    answered_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    __table_args__ = (Index("ix_mail_requests_email_purpose", "email", "purpose"),)

    @classmethod
    def next(cls, session):
        """The oldest unanswered request that is not locked, locked; None without one."""
        waiting = select(cls).where(cls.answered_at.is_(None)).order_by(cls.id).limit(1)
        return session.scalar(waiting.with_for_update(skip_locked=True))

    def exceeds_limit(self, session):
        """Whether a request of this address was answered within MAIL_PAUSE, or MAX_MAILS within MAIL_WINDOW.

        Locks the address.
        """
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"{self.purpose} {self.email}"))))
        alike = (MailRequest.email == self.email, MailRequest.purpose == self.purpose)
        now = func.clock_timestamp()
        too_many = or_(func.count() >= MAX_MAILS, func.max(MailRequest.answered_at) > now - MAIL_PAUSE)
        return session.scalar(select(too_many).where(*alike, MailRequest.answered_at > now - MAIL_WINDOW))


class LoginFailure(Base):
    """A login that failed, or is being checked. account_hash: of the address typed, which may have no account."""

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
    def record(cls, session, client_address, account_hash):
        """Count one more login, before it is checked: so logins at once get no more checks than logins one by one.

        Raises TooManyFailures while earlier failures ask for a wait.
        """
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext("login " + client_address))))
        age = func.extract("epoch", func.clock_timestamp() - func.max(cls.failed_at))
        recent = select(func.count(), age).where(
            cls.client_address == client_address, cls.failed_at > func.clock_timestamp() - FAILURE_WINDOW
        )
        waits = [
            _seconds_to_wait(*session.execute(recent.where(cls.account_hash == account_hash)).one(), ACCOUNT_FAILURES),
            _seconds_to_wait(*session.execute(recent).one(), ADDRESS_FAILURES),
        ]
        if max(waits) > 0:
            raise TooManyFailures(math.ceil(max(waits)))
        session.add(cls(client_address=client_address, account_hash=account_hash))

    @classmethod
    def forget(cls, session, client_address, account_hash):
        session.execute(delete(cls).where(cls.client_address == client_address, cls.account_hash == account_hash))


def _seconds_to_wait(failures, seconds_since_last, allowed):
    """Seconds still to wait: 1 s after the first failure beyond the limit, twice as long after each further one."""
    if failures < allowed:
        return 0
    return min(2 ** min(failures - allowed, 6), MAX_WAIT_SECONDS) - float(seconds_since_last)


def digest(token):
    """SHA-256 of a secret of 256 random bits, too many to be guessed: stored in place of the secret."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def normal_address(email):
    """The address as it is stored; None if it is not valid, and so no account's."""
    try:
        return Email().deserialize(email)
    except ValidationError:
        return None


def log_security(session, what, **fields):
    """Log a change of an account's security, once it is committed."""
    after_commit(session, lambda: security.warning(what, extra={"fields": fields}))


def forget_old(session):
    """Delete expired rows."""
    for model in (UserSession, RefreshToken, MailedToken, SignIn):
        session.execute(delete(model).where(model.expires_at < func.now()))
    session.execute(delete(LoginFailure).where(LoginFailure.failed_at < func.now() - FAILURE_WINDOW))
    session.execute(delete(MailRequest).where(MailRequest.answered_at < func.now() - MAIL_REQUEST_LIFE))
    Answer.forget_old(session)
