"""users: accounts, sessions and the access tokens that the gateway checks.

Owns:   users_db
RPC:    register, login, refresh, logout, list_sessions, end_session, google_sign_in_url, google_sign_in,
        get_user, list_users, update_user, set_role, update_profile, change_password,
        request_password_reset, reset_password, request_verification, verify_email, create_mailed_token, health
Emits:  user.registered, user.verification_requested, user.password_reset_requested

Secrets that open an account (refresh tokens, mailed tokens, a sign-in's state) have 256 random bits and are stored as
SHA-256. No outbox, durable queue or stored answer contains one.
"""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from contracts.demo_settings import demo_settings
from contracts.settings import ShopSettings
from contracts.types import InvalidInput, JsonObject, load, load_id
from contracts.users import (
    AccountDisabled,
    AddressVerification,
    InvalidSession,
    Login,
    OwnPasswordChange,
    PasswordReset,
    PasswordResetRequest,
    Profile,
    SessionNotFound,
    SignInCallback,
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
from nameko_reliable.outbox import Outbox
from nameko_reliable.polling import Wakeup, poll
from nameko_reliable.rpc import rpc
from nameko_reliable.settings import Settings
from nameko_reliable.timers import timer
from services.base import Service
from services.users_accounts import (
    change_rights,
    find_user,
    flush_unique,
    lock_rights,
    read_user,
    read_users,
    set_password,
)
from services.users_events import registered
from services.users_mailed_tokens import answer_next_request, new_mailed_token
from services.users_models import (
    MAILED_TOKEN_LIFE,
    RESET,
    VERIFICATION,
    Answer,
    Base,
    MailedToken,
    MailRequest,
    OutboxEntry,
    SignIn,
    User,
    UserSession,
    forget_old,
    normal_address,
)
from services.users_passwords import Passwords, hashing_rpc
from services.users_sessions import (
    SessionTokens,
    log_in,
    read_sessions,
    refresh_session,
    throttled_password_check,
)
from services.users_sign_in import account_of, provider_errors_translated
from services.users_sign_in_provider import ProviderClient

USER_QUERY, USER_VIEW = UserQuery(), UserView()


class Users(Service):
    name = "users"

    settings = Settings(
        ShopSettings, demo_settings, needs=["DB_URIS.users", "JWT_SECRET", ("GOOGLE_CLIENT_SECRET", "GOOGLE_CLIENT_ID")]
    )
    db = Database(Base, answers=Answer)
    outbox = Outbox(OutboxEntry, events=[UserRegistered, UserVerificationRequested, UserPasswordResetRequested])
    wakeup = Wakeup()
    passwords = Passwords()
    tokens = SessionTokens()
    openid = ProviderClient()

    # Accounts

    @hashing_rpc
    def register(self, email: str, username: str, password: str) -> JsonObject:
        """Create a customer's account, and return it.

        Raises InvalidInput, or Taken with the field. Addresses that differ only in case are the same, and so are names
        that look alike.
        """
        account = load(UserRegistration(), {"email": email, "username": username, "password": password})
        self._refuse_weak(account["password"], account["email"], account["username"])
        password_hash = self.passwords.hash(account["password"])
        return self._add_user(email=account["email"], username=account["username"], password_hash=password_hash)

    @once
    def _add_user(self, session: Session, /, **values: Any) -> JsonObject:
        user = User(**values)
        session.add(user)
        flush_unique(session)
        self.outbox.add(session, registered(user))
        return USER_VIEW.write(user)

    @rpc
    def get_user(self, user_id: int) -> JsonObject:
        """Raises UserNotFound."""
        return read_user(self.db.execute, user_id)

    @rpc
    def list_users(self, **query: Any) -> JsonObject:
        """{items, total, limit, offset}, by id. query: as contracts.users.UserQuery. Raises InvalidInput."""
        query = load(USER_QUERY, query)
        total, items = read_users(self.db.execute, query)
        return {"items": items, "total": total, "limit": query["limit"], "offset": query["offset"]}

    @rpc
    @once
    def update_user(self, session: Session, /, user_id: int, admin_id: int | None = None, **changes: Any) -> JsonObject:
        """Change an account's role, or disable or enable it, and return it.

        A new role or a disabled account ends the account's sessions. Access tokens stay valid for at most 15 minutes.
        admin_id: the calling admin, None for an operator. Raises UserNotFound, InvalidInput, LastAdmin, and NotAllowed
        for a former admin, who must not regain the role with an access token that is still valid.
        """
        changes = load(UserChanges(), changes)
        lock_rights(session, admin_id)
        user = find_user(session, user_id, lock=True)
        change_rights(session, user, changes)
        return USER_VIEW.write(user)

    @rpc
    @once
    def set_role(self, session: Session, email: str, role: str) -> JsonObject:
        """Make the account with this address a `customer` or an `admin`, as `update_user` does."""
        changes = load(UserChanges(), {"role": role})
        lock_rights(session)
        user = session.scalar(select(User).where(User.email == normal_address(email)).with_for_update())
        if user is None:
            raise UserNotFound(email)
        change_rights(session, user, changes)
        return USER_VIEW.write(user)

    @rpc
    @once
    def update_profile(self, session: Session, user_id: int, username: str) -> JsonObject:
        """Change the account's username, and return the account. Raises UserNotFound, InvalidInput, Taken."""
        user = find_user(session, user_id, lock=True)
        user.username = load(Profile(), {"username": username})["username"]
        flush_unique(session)
        return USER_VIEW.write(user)

    # Passwords

    @hashing_rpc
    def change_password(
        self, user_id: int, old_password: str, password: str, client_address: str | None = None
    ) -> None:
        """Set a new password. All sessions end.

        Raises UserNotFound, InvalidInput (of `old_password`, when it is wrong), TooManyFailures as `login`.
        """
        change = {"old_password": old_password, "password": password, "client_address": client_address}
        change = load(OwnPasswordChange(), change)
        with self.db.transaction() as session:
            user = find_user(session, user_id)
        self._refuse_weak(change["password"], user.email, user.username)
        with throttled_password_check(self.db, user.email, change["client_address"]):
            matches = self.passwords.matches(normal_password(change["old_password"]), user.password_hash)
            new_hash = self.passwords.hash(change["password"])
            self._change_password(user_id, user.password_hash if matches else None, new_hash)

    @once
    def _change_password(self, session: Session, user_id: int, old_hash: str | None, new_hash: str) -> None:
        """old_hash: the hash that the old password matched, None without a match."""
        user = find_user(session, user_id, lock=True)
        if old_hash is None or user.password_hash != old_hash:
            raise InvalidInput({"old_password": ["This is not your password."]})
        set_password(session, user, new_hash)

    @rpc
    def request_password_reset(self, email: str) -> None:
        """Mail a link to this address if it has an account. Neither the answer nor its timing shows whether it has."""
        request = load(PasswordResetRequest(), {"email": email})
        self._request_mail(request["email"], RESET)

    @hashing_rpc
    def reset_password(self, token: str, password: str) -> None:
        """Set a new password with a mailed token, which is deleted. All sessions end.

        The token also proves the address. Raises InvalidToken, and InvalidInput, after which the token is still valid.
        """
        reset = load(PasswordReset(), {"token": token, "password": password})
        with self.db.transaction() as session:
            user = MailedToken.owner(session, reset["token"], RESET)
        if user is not None:
            self._refuse_weak(reset["password"], user.email, user.username)
        self._reset_password(reset["token"], self.passwords.hash(reset["password"]) if user is not None else None)

    @once
    def _reset_password(self, session: Session, token: str, new_hash: str | None) -> None:
        """new_hash: None for a token that was not valid before the password was hashed."""
        user = MailedToken.spend(session, token, RESET)
        set_password(session, user, new_hash)
        user.email_verified_at = user.email_verified_at or func.now()

    def _refuse_weak(self, password: str, *known: str) -> None:
        if self.passwords.is_common(password) or password.lower() in {word.lower() for word in known}:
            raise InvalidInput({"password": ["This password is too easy to guess: choose another."]})

    # Addresses

    @rpc
    def request_verification(self, user_id: int) -> None:
        """Mail the verification link again. Raises UserNotFound."""
        self._request_mail(self.get_user(user_id)["email"], VERIFICATION)

    def _request_mail(self, email: str, purpose: str) -> None:
        with self.db.transaction() as session:
            session.add(MailRequest(email=email, purpose=purpose))
            self.wakeup.send_after_commit(session)

    @poll(interval_seconds=1)
    def answer_mail_request(self) -> bool:
        """Answer the next request for a mail. True while there may be more."""
        with self.db.transaction() as session:
            return answer_next_request(session, self.outbox)

    @rpc
    @once
    def verify_email(self, session: Session, token: str) -> None:
        """Mark the account's address as proven by a mailed token, which is deleted. Raises InvalidToken."""
        verification = load(AddressVerification(), {"token": token})
        user = MailedToken.spend(session, verification["token"], VERIFICATION)
        user.email_verified_at = func.now()

    @rpc
    def create_mailed_token(self, user_id: int, email: str, purpose: str) -> JsonObject:
        """{token, expires_in (seconds)}: a single-use secret for the link of one mail.

        purpose: `email_verification` or `password_reset`. Raises InvalidInput, and MailNotNeeded if the account no
        longer exists, is disabled, or has proven its address already.
        """
        # A list: the purpose may be unhashable.
        if purpose not in list(MAILED_TOKEN_LIFE):
            raise InvalidInput({"purpose": [f"Must be one of: {', '.join(MAILED_TOKEN_LIFE)}."]})
        with self.db.transaction() as session:
            token = new_mailed_token(session, user_id, email, purpose)
        return {"token": token, "expires_in": int(MAILED_TOKEN_LIFE[purpose].total_seconds())}

    # Sessions

    @hashing_rpc
    def login(
        self, email: str, password: str, client_address: str | None = None, user_agent: str | None = None
    ) -> JsonObject:
        """Open a session: {access_token, token_type, expires_in (seconds), refresh_token}.

        client_address, user_agent: the origin of the login, as far as the gateway knows it.
        Raises InvalidCredentials, alike for an unknown address, a wrong password and a disabled account, and
        TooManyFailures. A call that is delivered again opens a second session, whose tokens reach no device.
        """
        client = {"client_address": client_address, "user_agent": user_agent}
        login = load(Login(), {"email": email, "password": password, **client})
        with throttled_password_check(self.db, login["email"], login["client_address"]):
            user, refresh_token = log_in(self.db, self.passwords, login)
        return self.tokens.grant(user, refresh_token)

    @rpc
    def refresh(self, refresh_token: str) -> JsonObject:
        """Exchange a refresh token for the next one. Answers as `login`.

        Raises InvalidSession, also for a token that was used more than 10 s ago: two clients have it, so its session
        ends.
        """
        with self.db.transaction() as session:
            user, newest = refresh_session(session, refresh_token, self.tokens)
        if newest is None:
            raise InvalidSession
        return self.tokens.grant(user, newest)

    @rpc
    def logout(self, refresh_token: str) -> None:
        """End the session of this refresh token, if it has one."""
        with self.db.transaction() as session:
            user_session = UserSession.of_token(session, refresh_token)
            if user_session is not None:
                session.delete(user_session)

    @rpc
    def list_sessions(self, user_id: int, refresh_token: str | None = None) -> list[JsonObject]:
        """[{id, user_agent, client_address, created_at, last_used_at, expires_at, current}], last used first.

        current: whether it is the session of this refresh token.
        """
        return read_sessions(self.db.execute, user_id, refresh_token)

    @rpc
    @once
    def end_session(self, session: Session, user_id: int, session_id: int) -> None:
        """Log out one of the user's devices. Raises SessionNotFound."""
        user_session = session.get(UserSession, load_id(session_id, "session_id"), with_for_update=True)
        if user_session is None or user_session.user_id != user_id:
            raise SessionNotFound(session_id)
        session.delete(user_session)

    # Sign-in with a provider

    @rpc
    def google_sign_in_url(self) -> JsonObject:
        """Begin a sign-in: {url, state}. url: the address to send the browser to. state: the browser brings it back.

        Raises NotConfigured, SignInProviderAway.
        """
        with provider_errors_translated():
            authorization = self.openid.begin()
        with self.db.transaction() as session:
            SignIn.begin(session, authorization.state, authorization.nonce, authorization.code_verifier)
        return {"url": authorization.url, "state": authorization.state}

    @rpc
    def google_sign_in(
        self, code: str, state: str, client_address: str | None = None, user_agent: str | None = None
    ) -> JsonObject:
        """Finish a sign-in, once for each state, and open a session. Answers as `login`.

        Raises SignInRefused, SignInProviderAway, AccountDisabled, and UnprovenAddress for a new customer whose address
        the provider has not verified.
        """
        client = {"client_address": client_address, "user_agent": user_agent}
        callback = load(SignInCallback(), {"code": code, "state": state, **client})
        with self.db.transaction() as session:
            sign_in = SignIn.take(session, callback["state"])
        if sign_in is None:
            raise SignInRefused("This sign-in is finished, or took too long: begin again.")
        with provider_errors_translated():
            identity = self.openid.finish(callback["code"], sign_in.nonce, sign_in.code_verifier)
        with self.db.transaction() as session:
            user, is_new = account_of(session, identity)
            if not user.is_active:
                raise AccountDisabled
            if is_new:
                self.outbox.add(session, registered(user))
            # Within the transaction: the token's claims are read from rows that it changed.
            return self.tokens.grant(user, UserSession.open(session, user, callback))

    @rpc
    def health(self) -> dict[str, str]:
        """{"status": "up"}. Raises DatabaseUnavailable."""
        self.db.check()
        return {"status": "up"}

    @timer(interval=3600)
    def clean_up(self) -> None:
        with self.db.transaction() as session:
            forget_old(session)
