"""Mails with a link: the requests for them, and the tokens in the links."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from contracts.types import load_id
from contracts.users import MailNotNeeded
from nameko_reliable.outbox import WorkerOutbox
from services.users_events import mail_requested
from services.users_models import VERIFICATION, MailedToken, MailRequest, User


def answer_next_request(session: Session, outbox: WorkerOutbox) -> bool:
    """Answer the next request for a mail, with an event if the address has an account. False without a request."""
    request = MailRequest.next(session)
    if request is None:
        return False
    if request.exceeds_limit(session):
        # Without a row: else frequent requests would keep the next mail from ever being sent.
        session.delete(request)
        return True
    user = session.scalar(select(User).where(User.email == request.email, User.is_active))
    answered_at = session.execute(select(func.now())).scalar_one()
    request.answered_at = answered_at
    if user is not None:
        outbox.add(session, mail_requested(request, answered_at, user))
    return True


def new_mailed_token(session: Session, user_id: int, email: str, purpose: str) -> str:
    """A token for this account's mail. Raises MailNotNeeded if the mail is no longer needed."""
    user = session.get(User, load_id(user_id, "user_id"))
    if user is None or not user.is_active or user.email != email:
        raise MailNotNeeded
    if purpose == VERIFICATION and user.email_verified_at is not None:
        raise MailNotNeeded
    return MailedToken.new(session, user, purpose)
