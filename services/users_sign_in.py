"""Sign-in elsewhere: the account that a provider's identity opens, and the provider's errors as contract errors."""

import secrets
from contextlib import contextmanager

from marshmallow import ValidationError
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

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
from services.users_openid import IdentityRefused, ProviderNotConfigured, ProviderUnreachable


@contextmanager
def provider_errors_translated():
    try:
        yield
    except ProviderNotConfigured:
        raise NotConfigured from None
    except ProviderUnreachable as error:
        raise SignInProviderAway from error
    except IdentityRefused as error:
        raise SignInRefused(error.reason) from error


def account_of(session, identity):
    """(user, is_new): the account that the identity opens, locked, whether or not it is disabled.

    identity: of services.users_openid. Raises UnprovenAddress for a new customer whose address the provider doesn't
    vouch for, or no mail server takes.
    """
    known = session.get(ExternalIdentity, (identity.issuer, identity.subject))
    if known is not None:
        return session.get(User, known.user_id, with_for_update=True), False
    email = normal_address(identity.email) if identity.email_verified else None
    if email is None or not _may_have_account(session, email):
        raise UnprovenAddress
    user, is_new = _account_of_address(session, email, _username_for(identity.name, email))
    if user.is_active:
        link = insert(ExternalIdentity).values(issuer=identity.issuer, subject=identity.subject, user_id=user.id)
        session.execute(link.on_conflict_do_nothing())
        log_security(session, "linked to a sign-in provider", user_id=user.id)
        if user.email_verified_at is None:
            # Another person may have registered this address, and must keep no way in.
            user.password_hash, user.email_verified_at = None, func.now()
            UserSession.end_all(session, user)
    return user, is_new


def _may_have_account(session, email):
    """Whether the address may be a new account's, or is an account's already."""
    try:
        NewEmail().deserialize(email)
    except ValidationError:
        return session.scalar(select(User.id).where(User.email == email)) is not None
    return True


def _account_of_address(session, email, username):
    """(user, is_new), locked; made if there is none, under that name or, if it is taken, a similar one."""
    for free_name in (username, with_suffix(username, secrets.token_hex(4), MAX_USERNAME)):
        name = {"username": free_name, "username_key": username_key(free_name)}
        new = insert(User).values(email=email, email_verified_at=func.now(), **name)
        is_new = session.execute(new.on_conflict_do_nothing().returning(User.id)).first() is not None
        user = session.scalar(select(User).where(User.email == email).with_for_update())
        if user is not None:
            return user, is_new
    raise Taken("username")


def _username_for(name, email):
    """A valid username: the provider's, or else the part of the address before the @."""
    for username in (name, email.partition("@")[0]):
        try:
            return Profile().load({"username": username})["username"]
        except ValidationError:
            continue
    return f"forager-{secrets.token_hex(4)}"
