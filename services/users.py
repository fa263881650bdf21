"""users: accounts, sessions and the access tokens that the gateway checks.

Owns:   users_db
RPC:    register, login, refresh, logout, list_sessions, end_session, google_sign_in_url, google_sign_in,
        get_user, list_users, update_user, set_role, update_profile, change_password,
        request_password_reset, reset_password, request_verification, verify_email, create_mailed_token, health
Emits:  user.registered, user.verification_requested, user.password_reset_requested

Secrets that open an account (refresh tokens, mailed tokens, a sign-in's state) are stored as SHA-256, which
is enough for what has 256 random bits. None is in an outbox, a durable queue or a kept answer.
"""

import base64
import hmac
import time
import uuid
from contextlib import contextmanager

import jwt
from nameko.extensions import DependencyProvider
from sqlalchemy import delete, func, or_, select
from sqlalchemy.exc import IntegrityError

from contracts.names import normal_username
from contracts.production import demo_settings
from contracts.settings import ShopSettings
from contracts.types import InvalidInput, NotAllowed, Taken, event_id_of, load, load_id
from contracts.users import (
    AccountDisabled,
    AddressVerification,
    InvalidCredentials,
    InvalidSession,
    LastAdmin,
    Login,
    MailNotNeeded,
    NotConfigured,
    OwnPasswordChange,
    PasswordReset,
    PasswordResetRequest,
    Profile,
    SessionNotFound,
    SessionView,
    SignInAnswer,
    SignInProviderAway,
    SignInRefused,
    UserChanges,
    UserNotFound,
    UserPasswordResetRequested,
    UserQuery,
    UserRegistered,
    UserRegistration,
    UserVerificationRequested,
    UserView,
    normal_password,
)
from nameko_reliable.database import Database
from nameko_reliable.inbox import once
from nameko_reliable.messages import timestamp
from nameko_reliable.outbox import Outbox
from nameko_reliable.polling import Bell, poll
from nameko_reliable.rpc import rpc
from nameko_reliable.settings import Settings
from nameko_reliable.telemetry.logs import LogContext
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.telemetry.tracing import Tracing
from nameko_reliable.timers import timer
from services.users_models import (
    MAILED_TOKEN_LIFE,
    RESET,
    VERIFICATION,
    Answer,
    ExternalIdentity,
    LoginFailure,
    MailedToken,
    MailRequest,
    OutboxEntry,
    SignIn,
    TokenReused,
    User,
    UserSession,
    digest,
    forget_old,
    normal_address,
    tell_security,
)
from services.users_openid import IdentityRefused, OpenIdClient, ProviderAway, ProviderNotConfigured
from services.users_passwords import Passwords, hashing_rpc

USER_VIEW, SESSION_VIEW = UserView(), SessionView()
ACCESS_TOKEN_SECONDS = 15 * 60
MAIL_EVENTS = {RESET: UserPasswordResetRequested, VERIFICATION: UserVerificationRequested}


def registered(user):
    """The account's first event, the same each time it is made."""
    created_at = timestamp(user.created_at)
    event_id = event_id_of(UserRegistered.name, user.id, created_at)
    return UserRegistered(event_id=event_id, timestamp=user.created_at, user_id=user.id, email=user.email)


def mail_requested(request, user):
    """The event of an answered request for a mail, the same each time it is made."""
    event_class, answered_at = MAIL_EVENTS[request.purpose], timestamp(request.answered_at)
    event_id = event_id_of(event_class.name, request.id, answered_at)
    return event_class(event_id=event_id, timestamp=request.answered_at, user_id=user.id, email=user.email)


def events_since(session, since):
    """(event, key) of each account that was made since then, and of each mail that one has asked for.

    For `ops.resend`. Requests for mails are kept for MAIL_REQUEST_LIFE.
    """
    for user in session.scalars(select(User).where(User.created_at >= since).order_by(User.id)).yield_per(100):
        yield registered(user), None
    requests = (
        select(MailRequest, User)
        .join(User, User.email == MailRequest.email)
        .where(MailRequest.answered_at >= since, User.created_at <= MailRequest.answered_at, User.is_active)
        .order_by(MailRequest.id)
    )
    for request, user in session.execute(requests).yield_per(100):
        yield mail_requested(request, user), None


class Tokens(DependencyProvider):
    """Signs access tokens (HS256, 15 minutes) and derives refresh tokens."""

    def setup(self):
        config = self.container.config
        self._secrets = [config["JWT_SECRET"], *filter(None, [config["JWT_SECRET_PREVIOUS"]])]

    def get_dependency(self, worker_ctx):
        return self

    def issue(self, user):
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


class Users:
    name = "users"

    settings = Settings(
        ShopSettings, demo_settings, needs=["DB_URIS.users", "JWT_SECRET", ("GOOGLE_CLIENT_SECRET", "GOOGLE_CLIENT_ID")]
    )
    db = Database(answers=Answer)
    outbox = Outbox(OutboxEntry, events=[UserRegistered, UserVerificationRequested, UserPasswordResetRequested])
    bell = Bell()
    passwords = Passwords()
    tokens = Tokens()
    openid = OpenIdClient()
    log_context = LogContext()
    tracing = Tracing()
    metrics = Metrics(prefix="forage")

    # Accounts

    @hashing_rpc
    def register(self, email, username, password):
        """Open a customer's account and return it.

        Raises InvalidInput, or Taken with the field: addresses are compared without case, names by what one sees.
        """
        account = load(UserRegistration(), {"email": email, "username": username, "password": password})
        self._refuse_weak(account["password"], account["email"], account["username"])
        password_hash = self.passwords.hash(account["password"])
        return self._add_user(email=account["email"], username=account["username"], password_hash=password_hash)

    @once
    def _add_user(self, session, **values):
        user = User(**values)
        session.add(user)
        _flush(session)
        self.outbox.add(session, registered(user))
        return USER_VIEW.dump(user)

    @rpc
    def get_user(self, user_id):
        """Raises UserNotFound."""
        with self.db.transaction() as session:
            return USER_VIEW.dump(_find(session, user_id))

    @rpc
    def list_users(self, **query):
        """{items, total, limit, offset}, by id. query: as contracts.users.UserQuery. Raises InvalidInput."""
        query = load(UserQuery(), query)
        conditions = []
        if query["q"]:
            conditions.append(
                or_(
                    User.email.icontains(query["q"], autoescape=True),
                    User.username.icontains(normal_username(query["q"]), autoescape=True),
                )
            )
        if query["role"] is not None:
            conditions.append(User.role == query["role"])
        page = select(User).where(*conditions).order_by(User.id).limit(query["limit"]).offset(query["offset"])
        with self.db.transaction() as session:
            total = session.scalar(select(func.count()).select_from(User).where(*conditions))
            items = USER_VIEW.dump(session.scalars(page), many=True)
        return {"items": items, "total": total, "limit": query["limit"], "offset": query["offset"]}

    @rpc
    @once
    def update_user(self, session, user_id, admin_id=None, **changes):
        """Change an account's role, or disable or enable it, and return it.

        A new role, or being disabled, ends the account's sessions; access tokens live on for 15 minutes at most.
        admin_id: who asks, None for an operator. Raises UserNotFound, InvalidInput, LastAdmin, and NotAllowed for
        who is no admin any more: with the rest of a token nobody must give themselves their rights back.
        """
        changes = load(UserChanges(), changes)
        _let_admins_change_one_by_one(session)
        if admin_id is not None:
            admin = session.get(User, load_id(admin_id, "admin_id"))
            if admin is None or admin.role != "admin" or not admin.is_active:
                raise NotAllowed
        return self._change(session, _find(session, user_id, lock=True), changes)

    @rpc
    @once
    def set_role(self, session, email, role):
        """Make the account with this address a `customer` or an `admin`. As `update_user`."""
        changes = load(UserChanges(), {"role": role})
        _let_admins_change_one_by_one(session)
        user = session.scalar(select(User).where(User.email == normal_address(email)).with_for_update())
        if user is None:
            raise UserNotFound(email)
        return self._change(session, user, changes)

    def _change(self, session, user, changes):
        role, is_active = changes.get("role", user.role), changes.get("is_active", user.is_active)
        if (role, is_active) != (user.role, user.is_active):
            others = select(User.id).where(User.id != user.id, User.role == "admin", User.is_active)
            if user.role == "admin" and user.is_active and not session.scalar(select(others.exists())):
                raise LastAdmin
            if role != user.role or not is_active:
                UserSession.end_all(session, user)
            user.role, user.is_active = role, is_active
            session.flush()
            tell_security(session, "rights changed", user_id=user.id, role=role, is_active=is_active)
        return USER_VIEW.dump(user)

    @rpc
    @once
    def update_profile(self, session, user_id, username):
        """Change the account's name and return the account. Raises UserNotFound, InvalidInput, Taken."""
        user = _find(session, user_id, lock=True)
        user.username = load(Profile(), {"username": username})["username"]
        _flush(session)
        return USER_VIEW.dump(user)

    # Passwords

    @hashing_rpc
    def change_password(self, user_id, old_password, password, client_address=None):
        """Set a new password; all sessions end.

        Raises UserNotFound, InvalidInput (of `old_password`, when it is wrong), TooManyFailures as `login`.
        """
        change = {"old_password": old_password, "password": password, "client_address": client_address}
        change = load(OwnPasswordChange(), change)
        with self.db.transaction() as session:
            user = _find(session, user_id)
        self._refuse_weak(change["password"], user.email, user.username)
        self._note_login(user.email, change["client_address"])
        matches = self.passwords.matches(normal_password(change["old_password"]), user.password_hash)
        new_hash = self.passwords.hash(change["password"])
        self._change_password(user_id, user.password_hash if matches else None, new_hash)
        self._forget_failures(user.email, change["client_address"])

    @once
    def _change_password(self, session, user_id, old_hash, new_hash):
        """old_hash: the one that the old password was found to be of, None if it was not."""
        user = _find(session, user_id, lock=True)
        if old_hash is None or user.password_hash != old_hash:
            raise InvalidInput({"old_password": ["This is not your password."]})
        _set_password(session, user, new_hash)

    @rpc
    def request_password_reset(self, email):
        """Have a link mailed to this address, if it is an account's. Nothing in the answer or its time tells."""
        request = load(PasswordResetRequest(), {"email": email})
        self._request_mail(request["email"], RESET)

    @hashing_rpc
    def reset_password(self, token, password):
        """Set a new password with a mailed token, which is spent; all sessions end.

        It also proves the address. Raises InvalidInput, which leaves the token good, and InvalidToken.
        """
        reset = load(PasswordReset(), {"token": token, "password": password})
        with self.db.transaction() as session:
            user = MailedToken.owner(session, reset["token"], RESET)
        if user is not None:
            self._refuse_weak(reset["password"], user.email, user.username)
        self._reset_password(reset["token"], self.passwords.hash(reset["password"]) if user is not None else None)

    @once
    def _reset_password(self, session, token, new_hash):
        user = MailedToken.spend(session, token, RESET)
        _set_password(session, user, new_hash)
        user.email_verified_at = user.email_verified_at or func.now()

    def _refuse_weak(self, password, *known):
        if self.passwords.is_common(password) or password.lower() in {word.lower() for word in known}:
            raise InvalidInput({"password": ["One of the first that a guesser would try: choose another."]})

    # Addresses

    @rpc
    def request_verification(self, user_id):
        """Have the link that proves the address mailed once more. Raises UserNotFound."""
        self._request_mail(self.get_user(user_id)["email"], VERIFICATION)

    def _request_mail(self, email, purpose):
        with self.db.transaction() as session:
            session.add(MailRequest(email=email, purpose=purpose))
            self.bell.ring_after_commit(session)

    @poll(interval_seconds=1)
    def answer_mail_request(self):
        """Look into the next request for a mail. True while there may be more."""
        with self.db.transaction() as session:
            request = MailRequest.next(session)
            if request is None:
                return False
            if request.is_one_too_many(session):
                # Without a trace: else who asks often enough would keep the next mail from ever going out.
                session.delete(request)
                return True
            user = session.scalar(select(User).where(User.email == request.email, User.is_active))
            request.answered_at = session.scalar(select(func.now()))
            if user is not None:
                self.outbox.add(session, mail_requested(request, user))
            return True

    @rpc
    @once
    def verify_email(self, session, token):
        """Take a mailed token as the proof of the account's address; it is spent. Raises InvalidToken."""
        verification = load(AddressVerification(), {"token": token})
        user = MailedToken.spend(session, verification["token"], VERIFICATION)
        user.email_verified_at = func.now()

    @rpc
    def create_mailed_token(self, user_id, email, purpose):
        """{token, expires_in (seconds)}: a single-use secret for the link of one mail.

        purpose: `email_verification` or `password_reset`. Raises InvalidInput, and MailNotNeeded when there is
        no such account any more, it is disabled, or its address is proven already.
        """
        # In a list, since whatever comes may be unfit for a dictionary.
        if purpose not in list(MAILED_TOKEN_LIFE):
            raise InvalidInput({"purpose": [f"Must be one of: {', '.join(MAILED_TOKEN_LIFE)}."]})
        with self.db.transaction() as session:
            user = session.get(User, load_id(user_id, "user_id"))
            if user is None or not user.is_active or user.email != email:
                raise MailNotNeeded
            if purpose == VERIFICATION and user.email_verified_at is not None:
                raise MailNotNeeded
            token = MailedToken.new(session, user, purpose)
        return {"token": token, "expires_in": int(MAILED_TOKEN_LIFE[purpose].total_seconds())}

    # Sessions

    @hashing_rpc
    def login(self, email, password, client_address=None, user_agent=None):
        """Open a session: {access_token, token_type, expires_in (seconds), refresh_token}.

        client_address, user_agent: where the login comes from, as far as the gateway knows.
        Raises InvalidCredentials, for an unknown address, a wrong password and a disabled account alike, and
        TooManyFailures. A call that is delivered again opens a second session, which nobody has the token of.
        """
        client = {"client_address": client_address, "user_agent": user_agent}
        login = load(Login(), {"email": email, "password": password, **client})
        self._note_login(login["email"], login["client_address"])
        password = normal_password(login["password"])
        with self.db.transaction() as session:
            user = session.scalar(select(User).where(User.email == normal_address(login["email"])))
        refresh_token = None
        while refresh_token is None:
            checked_hash = user and user.password_hash
            if not self.passwords.matches(password, checked_hash) or not user.is_active:
                raise InvalidCredentials
            fresh_hash = self.passwords.hash(password) if self.passwords.is_outdated(checked_hash) else checked_hash
            with self.db.transaction() as session:
                user = session.get(User, user.id, with_for_update=True)
                # Else it changed while we checked, by a new password or by another login's new hash: check again.
                if user is not None and user.password_hash == checked_hash:
                    user.password_hash = fresh_hash
                    refresh_token = UserSession.open(session, user, login) if user.is_active else None
        self._forget_failures(login["email"], login["client_address"])
        return self._grant(user, refresh_token)

    def _note_login(self, email, client_address):
        with self.db.transaction() as session:
            LoginFailure.note(session, client_address or "", _account_hash(email))

    def _forget_failures(self, email, client_address):
        with self.db.transaction() as session:
            LoginFailure.forget(session, client_address or "", _account_hash(email))

    def _grant(self, user, refresh_token):
        return {
            "access_token": self.tokens.issue(user),
            "token_type": "bearer",
            "expires_in": ACCESS_TOKEN_SECONDS,
            "refresh_token": refresh_token,
        }

    @rpc
    def refresh(self, refresh_token):
        """Take a refresh token for the next: as `login` answers.

        Raises InvalidSession. A token that was used more than 10 s ago is in somebody else's hands, or was:
        its whole session ends.
        """
        with self.db.transaction() as session:
            device = UserSession.of_token(session, refresh_token, lock=True)
            if device is None:
                raise InvalidSession
            try:
                newest = device.rotate(session, refresh_token, self.tokens.successors)
            except TokenReused:
                newest = None
                session.delete(device)
                tell_security(session, "a used refresh token came again", user_id=device.user_id, session_id=device.id)
            user = session.get(User, device.user_id)
        if newest is None:
            raise InvalidSession
        return self._grant(user, newest)

    @rpc
    def logout(self, refresh_token):
        """End the session of this refresh token; nothing to do when it has none."""
        with self.db.transaction() as session:
            device = UserSession.of_token(session, refresh_token, lock=True)
            if device is not None:
                session.delete(device)

    @rpc
    def list_sessions(self, user_id, refresh_token=None):
        """[{id, user_agent, client_address, created_at, last_used_at, expires_at, current}], last used first.

        current: whether it is the session of this refresh token.
        """
        owned = UserSession.user_id == load_id(user_id, "user_id")
        devices = select(UserSession).where(owned, UserSession.expires_at > func.now())
        with self.db.transaction() as session:
            current = UserSession.of_token(session, refresh_token)
            devices = session.scalars(devices.order_by(UserSession.last_used_at.desc(), UserSession.id.desc()))
            return [{**SESSION_VIEW.dump(device), "current": device == current} for device in devices]

    @rpc
    @once
    def end_session(self, session, user_id, session_id):
        """Log one of the user's devices out. Raises SessionNotFound."""
        device = session.get(UserSession, load_id(session_id, "session_id"), with_for_update=True)
        if device is None or device.user_id != user_id:
            raise SessionNotFound(session_id)
        session.delete(device)

    # Sign-in elsewhere

    @rpc
    def google_sign_in_url(self):
        """Begin a sign-in: {url, state}. url: where to send the browser. state: what it must come back with.

        Raises NotConfigured, SignInProviderAway.
        """
        with _errors_of_provider():
            authorization = self.openid.begin()
        with self.db.transaction() as session:
            SignIn.begin(session, authorization)
        return {"url": authorization.url, "state": authorization.state}

    @rpc
    def google_sign_in(self, code, state, client_address=None, user_agent=None):
        """Finish a sign-in, once for each state, and open a session: as `login` answers.

        Raises SignInRefused, SignInProviderAway, UnprovenAddress for a newcomer whose address the provider
        doesn't vouch for, AccountDisabled.
        """
        client = {"client_address": client_address, "user_agent": user_agent}
        answer = load(SignInAnswer(), {"code": code, "state": state, **client})
        with self.db.transaction() as session:
            begun = SignIn.take(session, answer["state"])
        if begun is None:
            raise SignInRefused("This sign-in is finished or took too long: begin again.")
        with _errors_of_provider():
            identity = self.openid.finish(answer["code"], begun.nonce, begun.code_verifier)
        with self.db.transaction() as session:
            user, is_new = ExternalIdentity.account(session, identity)
            if not user.is_active:
                raise AccountDisabled
            if is_new:
                self.outbox.add(session, registered(user))
            # Within the transaction: what it wrote, like the proof of the address, is read back from it.
            return self._grant(user, UserSession.open(session, user, answer))

    @rpc
    def health(self):
        self.db.check()
        return {"status": "up"}

    @timer(interval=3600)
    def clean_up(self):
        with self.db.transaction() as session:
            forget_old(session)


def _account_hash(email):
    """Of the address that was typed, whether or not it is somebody's: it may be a password in the wrong field."""
    return digest(normal_address(email) or email)


def _find(session, user_id, lock=False):
    user = session.get(User, load_id(user_id, "user_id"), with_for_update=lock)
    if user is None:
        raise UserNotFound(user_id)
    return user


def _flush(session):
    try:
        session.flush()
    except IntegrityError as error:
        taken_name = error.orig.diag.constraint_name in ("uq_users_username_folded", "uq_users_username_key")
        raise Taken("username" if taken_name else "email") from error


def _set_password(session, user, password_hash):
    user.password_hash = password_hash
    UserSession.end_all(session, user)
    session.execute(delete(MailedToken).where(MailedToken.user_id == user.id, MailedToken.purpose == RESET))
    tell_security(session, "password changed", user_id=user.id)


def _let_admins_change_one_by_one(session):
    """Else two admins could make each other customers at once, and nobody were left."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext("admins"))))


@contextmanager
def _errors_of_provider():
    try:
        yield
    except ProviderNotConfigured:
        raise NotConfigured from None
    except ProviderAway as error:
        raise SignInProviderAway from error
    except IdentityRefused as error:
        raise SignInRefused(error.reason) from error
