"""Sign-in with a provider: the account of an identity, and the provider's errors as errors of the contract."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from marshmallow import ValidationError
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from contracts.names import username_key, with_suffix
from contracts.types import Taken
from contracts.users import (
    MAX_USERNAME,
    NewEmail,
    NotConfigured,
    Profile,
    SignInProviderAway,
    SignInRefused,
    UnprovenAddress,
)
from services.users_models import ExternalIdentity, User, UserSession, log_security, normal_address
from services.users_sign_in_provider import Identity, IdentityRefused, ProviderNotConfigured, ProviderUnreachable


@contextmanager
def provider_errors_translated() -> Iterator[None]:
    try:
        yield
    except ProviderNotConfigured:
        raise NotConfigured from None
    except ProviderUnreachable as error:
        raise SignInProviderAway from error
    except IdentityRefused as error:
        raise SignInRefused(error.reason) from error


def account_of(session: Session, identity: Identity) -> tuple[User, bool]:
    """(user, is_new): the account of the identity, locked. It may be disabled.

    Raises UnprovenAddress for a new customer whose address the provider has not verified, or no mail server accepts.
    """
    known = session.get(ExternalIdentity, (identity.issuer, identity.subject))
    if known is not None:
        return session.get_one(User, known.user_id, with_for_update=True), False
    email = normal_address(identity.email) if identity.email_verified else None
    if email is None or not _may_have_account(session, email):
        raise UnprovenAddress
    user, is_new = _account_of_address(session, email, _username_for(identity.name, email))
    if user.is_active:
        link = insert(ExternalIdentity).values(issuer=identity.issuer, subject=identity.subject, user_id=user.id)
        session.execute(link.on_conflict_do_nothing())
        log_security(session, "linked to a sign-in provider", user_id=user.id)
        if user.email_verified_at is None:
            # Another person may have registered this address, and must lose access.
            user.password_hash, user.email_verified_at = None, func.now()
            UserSession.end_all(session, user)
    return user, is_new


def _may_have_account(session: Session, email: str) -> bool:
    """Whether the address has an account, or may get one."""
    try:
        NewEmail().deserialize(email)
    except ValidationError:
        return session.scalar(select(User.id).where(User.email == email)) is not None
    return True


def _account_of_address(session: Session, email: str, username: str) -> tuple[User, bool]:
    """(user, is_new), locked. A new account gets that name, or a similar one if it is taken."""
    for free_name in (username, with_suffix(username, secrets.token_hex(4), MAX_USERNAME)):
        name = {"username": free_name, "username_key": username_key(free_name)}
        new = insert(User).values(email=email, email_verified_at=func.now(), **name)
        is_new = session.execute(new.on_conflict_do_nothing().returning(User.id)).first() is not None
        user = session.scalar(select(User).where(User.email == email).with_for_update())
        if user is not None:
            return user, is_new
    raise Taken("username")


def _username_for(name: str | None, email: str) -> str:
    """A valid username: the provider's, or the part of the address before the @, or a random one."""
    for username in (name, email.partition("@")[0]):
        try:
            profile = Profile().load({"username": username})
            return str(profile["username"])
        except ValidationError:
            continue
    return f"forager-{secrets.token_hex(4)}"
