"""The wire format of users: its events, errors, requests and answers."""

import unicodedata
from dataclasses import dataclass
from typing import Any

from email_validator import EmailNotValidError, validate_email
from marshmallow import Schema, ValidationError, fields, validate

from contracts.names import normal_username
from contracts.types import (
    Conflict,
    Data,
    Email,
    Line,
    Name,
    NotFound,
    PageQuery,
    ShopError,
    StrictBoolean,
    Text,
    Time,
    Unavailable,
    View,
    check_normalizable,
)
from nameko_reliable.messages import Event

MAX_USERNAME = 50
MAX_PASSWORD = 128
ROLES = ("customer", "admin")
# The rules of mail servers that a pattern can express. NewEmail checks the others, too.
NEW_EMAIL = (
    r"(?!.*=\?)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z0-9][A-Za-z0-9-]{0,61})?[A-Za-z]"
)


class InvalidCredentials(ShopError):
    pass


class InvalidSession(ShopError):
    pass


class InvalidToken(ShopError):
    pass


class TooManyFailures(ShopError):
    """Logins are refused, without a check of the password, until the wait is over."""

    def __init__(self, retry_after_seconds: int | str) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = int(retry_after_seconds)


class SignInRefused(ShopError):
    """reason: a sentence about the check that failed. It quotes no part of a token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AccountDisabled(ShopError):
    pass


class UserNotFound(NotFound):
    """user: the id or the address of the request."""

    def __init__(self, user: int | str) -> None:
        super().__init__(user)
        self.user = str(user)


class SessionNotFound(NotFound):
    def __init__(self, session_id: int | str) -> None:
        super().__init__(session_id)
        self.session_id = int(session_id)


class LastAdmin(Conflict):
    pass


class UnprovenAddress(Conflict):
    pass


class MailNotNeeded(Conflict):
    pass


class NotConfigured(Unavailable):
    outcome = "refused"


class SignInProviderAway(Unavailable):
    pass


@dataclass(frozen=True, kw_only=True)
class UserEvent(Event):
    """It carries no token for its mail: notifications asks users for one when it sends the mail."""

    source = "users"

    user_id: int
    email: str


@dataclass(frozen=True, kw_only=True)
class UserRegistered(UserEvent):
    name = "user.registered"
    subscribers = (("notifications", "send_verification"),)


@dataclass(frozen=True, kw_only=True)
class UserVerificationRequested(UserEvent):
    """The user asked for the mail once more: it did not arrive, or came too late."""

    name = "user.verification_requested"
    subscribers = (("notifications", "send_verification_again"),)


@dataclass(frozen=True, kw_only=True)
class UserPasswordResetRequested(UserEvent):
    name = "user.password_reset_requested"
    subscribers = (("notifications", "send_password_reset"),)


class Username(Name):
    normal_form = "NFKC"
    normal = staticmethod(normal_username)

    def __init__(self) -> None:
        super().__init__(MAX_USERNAME, required=True)


class NewEmail(Email):
    """The address of a new account: mail servers accept it, as far as that can be checked without DNS.

    Older accounts may have other addresses, so logins and orders don't check for it.
    """

    pattern = rf"^\s*{NEW_EMAIL}\s*$"

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        email = super()._deserialize(value, attr, data, **kwargs)
        try:
            # test_environment accepts `.test`, which demos and tests use.
            validate_email(email, allow_smtputf8=False, check_deliverability=False, test_environment=True)
        except EmailNotValidError as error:
            raise ValidationError(f"Not a valid email address. {error}") from error
        return email


def normal_password(password: str) -> str:
    """NFKC, as NIST SP 800-63B 5.1.1.2 asks: a password is the same on every keyboard."""
    return unicodedata.normalize("NFKC", password)


class NewPassword(Text):
    """Any Unicode, normalized."""

    def __init__(self) -> None:
        super().__init__(required=True, validate=validate.Length(8, MAX_PASSWORD))

    def _deserialize(self, value: Any, attr: str | None, data: Data, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        return normal_password(check_normalizable(text, MAX_PASSWORD))


def UncheckedSecret(**kwargs: Any) -> fields.String:
    """Only its length is limited: a malformed secret gets the answer of a wrong one."""
    return fields.String(validate=validate.Length(max=1000), **kwargs)


class UserRegistration(Schema):
    email = NewEmail(required=True)
    username = Username()
    password = NewPassword()


class Credentials(Schema):
    email = UncheckedSecret(required=True)
    password = UncheckedSecret(required=True)


class ClientInfo(Schema):
    """The origin of a request, as the gateway sends it."""

    client_address = Line(load_default=None, allow_none=True, validate=validate.Length(max=100))
    user_agent = Line(load_default=None, allow_none=True, validate=validate.Length(max=300))


class Login(Credentials, ClientInfo):
    pass


class SignInCallback(ClientInfo):
    """The parameters with which a sign-in provider sends the browser back."""

    code = fields.String(required=True, validate=validate.Length(1, 4000))
    state = UncheckedSecret(required=True)


class PasswordResetRequest(Schema):
    email = Email(required=True)


class PasswordReset(Schema):
    """token: from the mail's link."""

    token = UncheckedSecret(required=True)
    password = NewPassword()


class AddressVerification(Schema):
    token = UncheckedSecret(required=True)


class Profile(Schema):
    username = Username()


class PasswordChange(Schema):
    old_password = UncheckedSecret(required=True)
    password = NewPassword()


class OwnPasswordChange(PasswordChange, ClientInfo):
    pass


class UserChanges(Schema):
    """An admin's changes to an account. Absent fields keep their values."""

    role = fields.String(validate=validate.OneOf(ROLES))
    is_active = StrictBoolean()


class UserQuery(PageQuery):
    """q: a part of the address or of the name."""

    q = Line(load_default=None, allow_none=True, validate=validate.Length(max=254))
    role = fields.String(load_default=None, allow_none=True, validate=validate.OneOf(ROLES))


class UserView(View):
    id = fields.Integer()
    email = fields.String(metadata={"format": "email"})
    username = fields.String()
    role = fields.String(validate=validate.OneOf(ROLES))
    is_active = fields.Boolean()
    created_at = Time()
    updated_at = Time()


class UserPageView(View):
    items = fields.List(fields.Nested(UserView))
    total = fields.Integer()
    limit = fields.Integer()
    offset = fields.Integer()


class SessionView(View):
    """A device that is logged in. current: whether it is the caller's, by its cookie."""

    id = fields.Integer()
    user_agent = fields.String(allow_none=True)
    client_address = fields.String(allow_none=True)
    created_at = Time()
    last_used_at = Time()
    expires_at = Time()
    current = fields.Boolean()
