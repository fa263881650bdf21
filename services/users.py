"""users: accounts, sessions and the access tokens that the gateway checks.

Owns:   users_db
RPC:    register, login, refresh, logout, list_sessions, end_session, google_sign_in_url, google_sign_in,
        get_user, list_users, update_user, set_role, update_profile, change_password,
        request_password_reset, reset_password, request_verification, verify_email, create_mailed_token, health
Emits:  user.registered, user.verification_requested, user.password_reset_requested

Secrets that open an account (refresh tokens, mailed tokens, a sign-in's state) have 256 random bits and are stored
as SHA-256. None is in an outbox, a durable queue or a kept answer.
"""

from sqlalchemy import func, select

from contracts.production import demo_settings
from contracts.settings import ShopSettings
from contracts.types import InvalidInput, load, load_id
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
    SessionView,
    SignInAnswer,
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
    search_users,
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
from services.users_openid import OpenIdClient
from services.users_passwords import Passwords, hashing_rpc
from services.users_sessions import SessionTokens, counted_try, log_in, refresh_session
from services.users_sign_in import account_of, errors_of_provider

USER_VIEW, SESSION_VIEW = UserView(), SessionView()


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
    openid = OpenIdClient()

    # Accounts

    @hashing_rpc
    def register(self, email, username, password):
        """Open a customer's account and return it.

        Raises InvalidInput, or Taken with the field: addresses are compared without case, names by how they look.
        """
        account = load(UserRegistration(), {"email": email, "username": username, "password": password})
        self._refuse_weak(account["password"], account["email"], account["username"])
        password_hash = self.passwords.hash(account["password"])
        return self._add_user(email=account["email"], username=account["username"], password_hash=password_hash)

    @once
    def _add_user(self, session, **values):
        user = User(**values)
        session.add(user)
        flush_unique(session)
        self.outbox.add(session, registered(user))
        return USER_VIEW.write(user)

    @rpc
    def get_user(self, user_id):
        """Raises UserNotFound."""
        with self.db.transaction() as session:
            return USER_VIEW.write(find_user(session, user_id))

    @rpc
    def list_users(self, **query):
        """{items, total, limit, offset}, by id. query: as contracts.users.UserQuery. Raises InvalidInput."""
        query = load(UserQuery(), query)
        with self.db.transaction() as session:
            total, users = search_users(session, query)
            items = [USER_VIEW.write(user) for user in users]
        return {"items": items, "total": total, "limit": query["limit"], "offset": query["offset"]}

    @rpc
    @once
    def update_user(self, session, user_id, admin_id=None, **changes):
        """Change an account's role, or disable or enable it, and return it.

        A new role, or being disabled, ends the account's sessions; access tokens live on for 15 minutes at most.
        admin_id: the admin who asks, None for an operator. Raises UserNotFound, InvalidInput, LastAdmin, and NotAllowed
        for a former admin, whose access token is still good: it must not give them their rights back.
        """
        changes = load(UserChanges(), changes)
        lock_rights(session, admin_id)
        user = find_user(session, user_id, lock=True)
        change_rights(session, user, changes)
        return USER_VIEW.write(user)

    @rpc
    @once
    def set_role(self, session, email, role):
        """Make the account with this address a `customer` or an `admin`. As `update_user`."""
        changes = load(UserChanges(), {"role": role})
        lock_rights(session)
        user = session.scalar(select(User).where(User.email == normal_address(email)).with_for_update())
        if user is None:
            raise UserNotFound(email)
        change_rights(session, user, changes)
        return USER_VIEW.write(user)

    @rpc
    @once
    def update_profile(self, session, user_id, username):
        """Change the account's name and return the account. Raises UserNotFound, InvalidInput, Taken."""
        user = find_user(session, user_id, lock=True)
        user.username = load(Profile(), {"username": username})["username"]
        flush_unique(session)
        return USER_VIEW.write(user)

    # Passwords

    @hashing_rpc
    def change_password(self, user_id, old_password, password, client_address=None):
        """Set a new password; all sessions end.

        Raises UserNotFound, InvalidInput (of `old_password`, when it is wrong), TooManyFailures as `login`.
        """
        change = {"old_password": old_password, "password": password, "client_address": client_address}
        change = load(OwnPasswordChange(), change)
        with self.db.transaction() as session:
            user = find_user(session, user_id)
        self._refuse_weak(change["password"], user.email, user.username)
        with counted_try(self.db, user.email, change["client_address"]):
            matches = self.passwords.matches(normal_password(change["old_password"]), user.password_hash)
            new_hash = self.passwords.hash(change["password"])
            self._change_password(user_id, user.password_hash if matches else None, new_hash)

    @once
    def _change_password(self, session, user_id, old_hash, new_hash):
        """old_hash: the hash that the old password matched, None without a match."""
        user = find_user(session, user_id, lock=True)
        if old_hash is None or user.password_hash != old_hash:
            raise InvalidInput({"old_password": ["This is not your password."]})
        set_password(session, user, new_hash)

    @rpc
    def request_password_reset(self, email):
        """Mail a link to this address, if it is an account's. Neither the answer nor its time shows whether it is."""
        request = load(PasswordResetRequest(), {"email": email})
        self._request_mail(request["email"], RESET)

    @hashing_rpc
    def reset_password(self, token, password):
        """Set a new password with a mailed token, which is spent; all sessions end.

        The token also proves the address. Raises InvalidInput, after which the token is still good, and InvalidToken.
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
        set_password(session, user, new_hash)
        user.email_verified_at = user.email_verified_at or func.now()

    def _refuse_weak(self, password, *known):
        if self.passwords.is_common(password) or password.lower() in {word.lower() for word in known}:
            raise InvalidInput({"password": ["One of the first that a guesser would try: choose another."]})

    # Addresses

    @rpc
    def request_verification(self, user_id):
        """Mail the link that proves the address once more. Raises UserNotFound."""
        self._request_mail(self.get_user(user_id)["email"], VERIFICATION)

    def _request_mail(self, email, purpose):
        with self.db.transaction() as session:
            session.add(MailRequest(email=email, purpose=purpose))
            self.wakeup.send_after_commit(session)

    @poll(interval_seconds=1)
    def answer_mail_request(self):
        """Answer the next request for a mail. True while there may be more."""
        with self.db.transaction() as session:
            return answer_next_request(session, self.outbox)

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

        purpose: `email_verification` or `password_reset`. Raises InvalidInput, and MailNotNeeded when the account is
        gone or disabled, or its address is proven already.
        """
        # In a list: the purpose may be unhashable.
        if purpose not in list(MAILED_TOKEN_LIFE):
            raise InvalidInput({"purpose": [f"Must be one of: {', '.join(MAILED_TOKEN_LIFE)}."]})
        with self.db.transaction() as session:
            token = new_mailed_token(session, user_id, email, purpose)
        return {"token": token, "expires_in": int(MAILED_TOKEN_LIFE[purpose].total_seconds())}

    # Sessions

    @hashing_rpc
    def login(self, email, password, client_address=None, user_agent=None):
        """Open a session: {access_token, token_type, expires_in (seconds), refresh_token}.

        client_address, user_agent: where the login comes from, as far as the gateway knows.
        Raises InvalidCredentials, for an unknown address, a wrong password and a disabled account alike, and
        TooManyFailures. A call that is delivered again opens a second session, whose token no device gets.
        """
        client = {"client_address": client_address, "user_agent": user_agent}
        login = load(Login(), {"email": email, "password": password, **client})
        with counted_try(self.db, login["email"], login["client_address"]):
            user, refresh_token = log_in(self.db, self.passwords, login)
        return self.tokens.grant(user, refresh_token)

    @rpc
    def refresh(self, refresh_token):
        """Take a refresh token for the next: as `login` answers.

        Raises InvalidSession. A token that was used more than 10 s ago is, or was, in two hands: its whole session
        ends.
        """
        with self.db.transaction() as session:
            user, newest = refresh_session(session, refresh_token, self.tokens)
        if newest is None:
            raise InvalidSession
        return self.tokens.grant(user, newest)

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
            return [SESSION_VIEW.write(device, current=device == current) for device in devices]

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
        """Begin a sign-in: {url, state}. url: where to send the browser. state: it must come back with this.

        Raises NotConfigured, SignInProviderAway.
        """
        with errors_of_provider():
            authorization = self.openid.begin()
        with self.db.transaction() as session:
            SignIn.begin(session, authorization)
        return {"url": authorization.url, "state": authorization.state}

    @rpc
    def google_sign_in(self, code, state, client_address=None, user_agent=None):
        """Finish a sign-in, once for each state, and open a session: as `login` answers.

        Raises SignInRefused, SignInProviderAway, AccountDisabled, and UnprovenAddress for a new customer whose address
        the provider doesn't vouch for.
        """
        client = {"client_address": client_address, "user_agent": user_agent}
        answer = load(SignInAnswer(), {"code": code, "state": state, **client})
        with self.db.transaction() as session:
            begun = SignIn.take(session, answer["state"])
        if begun is None:
            raise SignInRefused("This sign-in is finished or took too long: begin again.")
        with errors_of_provider():
            identity = self.openid.finish(answer["code"], begun.nonce, begun.code_verifier)
        with self.db.transaction() as session:
            user, is_new = account_of(session, identity)
            if not user.is_active:
                raise AccountDisabled
            if is_new:
                self.outbox.add(session, registered(user))
            # Within the transaction: the token's claims are read back from the rows that it wrote.
            return self.tokens.grant(user, UserSession.open(session, user, answer))

    @rpc
    def health(self):
        self.db.check()
        return {"status": "up"}

    @timer(interval=3600)
    def clean_up(self):
        with self.db.transaction() as session:
            forget_old(session)
