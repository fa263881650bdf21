"""The events of users, made from its tables: each is the same whenever it is made again."""

from sqlalchemy import select

from contracts.types import event_id_of
from contracts.users import UserPasswordResetRequested, UserRegistered, UserVerificationRequested
from nameko_reliable.messages import timestamp
from services.users_models import RESET, VERIFICATION, MailRequest, User

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
    """(event, key) of each account made since then, and of each mail that an account asked for since then.

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
