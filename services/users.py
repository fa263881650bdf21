"""users: accounts, passwords and the access tokens that the gateway checks.

Owns:   users_db
RPC:    register, login, get_user, set_role, health
Emits:  user.registered
"""

import base64
import hashlib
import time
import uuid
from datetime import datetime

import bcrypt
import jwt
from marshmallow import ValidationError
from nameko.extensions import DependencyProvider
from nameko.timer import timer
from sqlalchemy import BigInteger, Boolean, DateTime, Identity, Index, Text, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from contracts.errors import InvalidCredentials, InvalidInput, Taken, UserNotFound
from contracts.events import UserRegistered
from contracts.schemas import Credentials, Email, UserRegistration, load, load_id
from extensions.database import Database
from extensions.inbox import AnswerMixin, once
from extensions.outbox import Outbox, OutboxMixin
from extensions.payloads import timestamp
from extensions.rpc import rpc
from extensions.settings import integer, secret
from extensions.telemetry import LogContext
from extensions.threads import in_thread

ACCESS_TOKEN_SECONDS = 15 * 60
ROLES = ("customer", "admin")


class Base(DeclarativeBase):
    pass


class OutboxEntry(OutboxMixin, Base):
    pass


class Answer(AnswerMixin, Base):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(Text, unique=True)
    username: Mapped[str] = mapped_column(Text)
    password_hash: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text, server_default="customer")
    is_active: Mapped[bool] = mapped_column(Boolean, server_default="true")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )

    __table_args__ = (Index("uq_users_username_folded", func.lower(username), unique=True),)


def user_view(user):
    return {
        "id": user.id,
        "email": user.email,
        "username": user.username,
        "role": user.role,
        "is_active": user.is_active,
        "created_at": timestamp(user.created_at),
        "updated_at": timestamp(user.updated_at),
    }


class Passwords(DependencyProvider):
    """Hashes and checks passwords outside the event loop: at 12 rounds one takes 200 ms."""

    def setup(self):
        rounds = integer(self.container.config, "BCRYPT_ROUNDS", 4, 16)
        self._salt = lambda: bcrypt.gensalt(rounds)
        # Checked when the address is unknown, so that the answer takes as long.
        self._nobody = bcrypt.hashpw(uuid.uuid4().bytes.hex().encode(), self._salt())

    def get_dependency(self, worker_ctx):
        return self

    def hash(self, password):
        return in_thread(bcrypt.hashpw, _bcrypt_input(password), self._salt()).decode()

    def match(self, password, password_hash):
        """Whether the password is the hash's; with None for the hash false, after as long."""
        known = password_hash is not None
        expected = password_hash.encode() if known else self._nobody
        return in_thread(bcrypt.checkpw, _bcrypt_input(password), expected) and known


def _bcrypt_input(password):
    """bcrypt takes 72 bytes without a NUL; what it can't take whole is hashed first, so that no byte is lost."""
    raw = password.encode(errors="surrogatepass")
    if len(raw) > 72 or b"\0" in raw:
        return base64.b64encode(hashlib.sha256(raw).digest())
    return raw


class Tokens(DependencyProvider):
    """Signs access tokens: HS256, 15 minutes."""

    def setup(self):
        hint = "the secret that signs access tokens, 32 bytes or more, the same for users and gateway."
        self._secret = secret(self.container.config, "JWT_SECRET", 32, hint)

    def get_dependency(self, worker_ctx):
        return self

    def issue(self, user):
        now = int(time.time())
        claims = {
            "sub": str(user.id),
            "email": user.email,
            "role": user.role,
            "iat": now,
            "exp": now + ACCESS_TOKEN_SECONDS,
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode(claims, self._secret, algorithm="HS256")


class Users:
    name = "users"

    db = Database(answers=Answer)
    outbox = Outbox(OutboxEntry, events=[UserRegistered])
    passwords = Passwords()
    tokens = Tokens()
    log_context = LogContext()

    @rpc
    def register(self, email, username, password):
        """Open a customer's account and return it.

        Raises InvalidInput, or Taken with the field: addresses and names are compared without case.
        """
        account = load(UserRegistration(), {"email": email, "username": username, "password": password})
        password_hash = self.passwords.hash(account["password"])
        return self._add_user(email=account["email"], username=account["username"], password_hash=password_hash)

    @once
    def _add_user(self, session, **values):
        user = User(**values)
        session.add(user)
        try:
            session.flush()
        except IntegrityError as error:
            taken_name = error.orig.diag.constraint_name == "uq_users_username_folded"
            raise Taken("username" if taken_name else "email") from error
        self.outbox.add(session, UserRegistered(user_id=user.id, email=user.email))
        return user_view(user)

    @rpc
    def login(self, email, password):
        """Return {access_token, token_type, expires_in (seconds)}.

        Raises InvalidCredentials: for an unknown address, a wrong password and a disabled account alike.
        """
        credentials = load(Credentials(), {"email": email, "password": password})
        with self.db.transaction() as session:
            user = session.scalar(select(User).where(User.email == _normal_address(credentials["email"])))
        matches = self.passwords.match(credentials["password"], user and user.password_hash)
        if not matches or not user.is_active:
            raise InvalidCredentials
        return {
            "access_token": self.tokens.issue(user),
            "token_type": "bearer",
            "expires_in": ACCESS_TOKEN_SECONDS,
        }

    @rpc
    def get_user(self, user_id):
        """Raises UserNotFound."""
        with self.db.transaction() as session:
            user = session.get(User, load_id(user_id))
            if user is None:
                raise UserNotFound(user_id)
            return user_view(user)

    @rpc
    def set_role(self, email, role):
        """Make the account with this address a `customer` or an `admin`.

        Holds from its next login. Raises UserNotFound, InvalidInput.
        """
        if role not in ROLES:
            raise InvalidInput({"role": [f"Must be one of: {', '.join(ROLES)}."]})
        with self.db.transaction() as session:
            user = session.scalar(select(User).where(User.email == _normal_address(email)).with_for_update())
            if user is None:
                raise UserNotFound(email)
            user.role = role
            session.flush()
            return user_view(user)

    @rpc
    def health(self):
        self.db.check()
        return {"status": "up"}

    @timer(interval=3600)
    def forget_answers(self):
        with self.db.transaction() as session:
            Answer.forget_old(session)


def _normal_address(email):
    """As it is stored; None where it could not be stored, and so is nobody's."""
    try:
        return Email().deserialize(email)
    except ValidationError:
        return None
