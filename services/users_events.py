"""The events of users, made from its tables. An event that is made again is the same."""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.types import event_id_of
from contracts.users import UserPasswordResetRequested, UserRegistered, UserVerificationRequested
from nameko_reliable.messages import Event, timestamp
from services.users_models import RESET, VERIFICATION, MailRequest, User

MAIL_EVENTS: dict[str, type[UserPasswordResetRequested | UserVerificationRequested]] = {
    RESET: UserPasswordResetRequested,
    VERIFICATION: UserVerificationRequested,
}


def registered(user: User) -> UserRegistered:
    """The event of the registration."""
    created_at = timestamp(user.created_at)
    event_id = event_id_of(UserRegistered.name, user.id, created_at)
    return UserRegistered(event_id=event_id, timestamp=user.created_at, user_id=user.id, email=user.email)


def mail_requested(
    request: MailRequest, answered_at: datetime, user: User
) -> UserPasswordResetRequested | UserVerificationRequested:
    """The event of a request for a mail that was answered at that time."""
    event_class = MAIL_EVENTS[request.purpose]
    event_id = event_id_of(event_class.name, request.id, timestamp(answered_at))
    return event_class(event_id=event_id, timestamp=answered_at, user_id=user.id, email=user.email)


def events_since(session: Session, since: datetime) -> Iterator[tuple[Event, None]]:
    """(event, key) of each registration and each request for a mail since then, for `ops.resend`.

    Requests for mails are kept for MAIL_REQUEST_LIFE.
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
        yield mail_requested(request, request.answered_at, user), None
