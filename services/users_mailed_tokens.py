"""Mails with a link: requests for one, and the token that the link carries."""

from sqlalchemy import func, select

from contracts.types import load_id
from contracts.users import MailNotNeeded
from services.users_events import mail_requested
from services.users_models import VERIFICATION, MailedToken, MailRequest, User


def answer_next_request(session, outbox):
    """Answer the next request for a mail: with an event, if the address is an account's. False without a request."""
    request = MailRequest.next(session)
    if request is None:
        return False
    if request.exceeds_limit(session):
        # It leaves no row: else asking often enough would keep the next mail from ever going out.
        session.delete(request)
        return True
    user = session.scalar(select(User).where(User.email == request.email, User.is_active))
    request.answered_at = session.scalar(select(func.now()))
    if user is not None:
        outbox.add(session, mail_requested(request, user))
    return True


def new_mailed_token(session, user_id, email, purpose):
    """A token for this account's mail. Raises MailNotNeeded when the mail has no purpose any more."""
    user = session.get(User, load_id(user_id, "user_id"))
    if user is None or not user.is_active or user.email != email:
        raise MailNotNeeded
    if purpose == VERIFICATION and user.email_verified_at is not None:
        raise MailNotNeeded
    return MailedToken.new(session, user, purpose)
