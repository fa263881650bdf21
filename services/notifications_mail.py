"""How a mail leaves the table: claimed, sent, noted.

A sender claims some mails that are due in one statement and holds them by a lease of the database's clock. It sends
them one by one over a connection that it keeps, outside of any transaction. Right before a mail's end, its dot, it
writes `dot_at`, which fails once the lease is over: then another may have sent the mail. What the mail server answers
is noted at once.

- A sender that dies or hangs before the dot loses the lease, and another sends the mail.
- One that does so between dot and note leaves a mail that the server may have: `uncertain`.

A double mail can come of `uncertain` alone: sender, connection or database was lost between `dot_at` and the note, or
the sender was frozen there for longer than the pause before the next try. Its Message-ID is fixed, so that mail
programs may show it once.
"""

import logging
import math
import time
from datetime import timedelta
from uuid import uuid4

from sqlalchemy import delete, func, select, update

from contracts.users import MailNotNeeded
from nameko_reliable.errors import ServiceUnavailable
from nameko_reliable.polling import Interrupted, in_background
from nameko_reliable.telemetry.logs import bind_log_fields
from services.notifications_models import FREE, Notification
from services.notifications_smtp import MailPostponed, MailRefused, MailServerUnreachable, MailUncertain

logger = logging.getLogger(__name__)

CLAIM_MAILS = 20
LEASE_SECONDS = 30
RENEW_SECONDS = 10
# Those claimed with a mail that takes longer are for others to send.
SLOW_SECONDS = 2
NOTE_PAUSES_SECONDS = (0.2, 5)
LONGEST_REASON = 1000
# As old as it is it goes before those that are due since then.
GIVEN_BACK = FREE | {"next_try_at": Notification.created_at}


class UsersUnreachable(Exception):
    """No token for the mail's link at the moment: says nothing about this mail."""


class LeaseLost(Exception):
    """The mail may be another sender's by now."""


class Sender:
    """Sends what is due over one connection, until its poller ends.

    due: which, as a select of ids. make_mail(notification): an EmailMessage, and the secret in it or None. It raises
    UsersUnreachable, and MailNotNeeded, after which the notification is deleted.
    """

    def __init__(self, db, mailer, connection, tracing, poller, due, make_mail):
        self._db, self._mailer, self._connection, self._tracing = db, mailer, connection, tracing
        self._poller, self._due, self._make_mail = poller, due, make_mail

    def send_all(self):
        found = True
        while self._poller.next_round(found):
            try:
                found = self._send_some()
            except ServiceUnavailable as error:
                logger.warning("mails wait: %r", error)
                found = False

    def _send_some(self):
        """Claim and send. True while there may be more to send."""
        claimed_at = time.monotonic()
        with self._db.transaction() as session:
            _doubt_those_left_with_the_server(session)
            mails = _claim(session, self._due.limit(math.ceil(CLAIM_MAILS * self._poller.share)))
        if not mails:
            self._connection.rest()
            return False
        try:
            # Only the mail that is being sent has its lease renewed: the others are given back in time.
            while mails and time.monotonic() < claimed_at + LEASE_SECONDS / 2:
                notification, age = mails.pop(0)
                with (
                    self._tracing.continued(notification.traceparent),
                    bind_log_fields(request_id=notification.request_id, event_id=notification.event_id),
                ):
                    if not self._send(notification, age, mails):
                        return False
        finally:
            self._give_back(mails)
        return True

    def _send(self, notification, age, others):
        """Try to send, and note what came of it. False if others would hardly fare better.

        others: those claimed with it; emptied when this one turns out to be slow.
        """
        with in_background(lambda pause: self._hold(notification, others, pause)):
            started_at = time.monotonic()
            mine = Notification.id == notification.id, Notification.lease == notification.lease
            try:
                self._hand_over(notification)
            except MailNotNeeded:
                logger.info("notification %d is not needed any more", notification.id)
                self._note(delete(Notification).where(*mine))
                return True
            except LeaseLost:
                logger.warning("notification %d may be another sender's by now", notification.id)
                return True
            except (Interrupted, ServiceUnavailable) as error:
                # Perhaps dot_at was written, but no dot was sent.
                logger.warning("notification %d waits: %r", notification.id, error)
                self._note(update(Notification).where(*mine).values(GIVEN_BACK))
                return False
            except (MailServerUnreachable, UsersUnreachable) as error:
                logger.warning("notification %d waits: %s", notification.id, error)
                age += timedelta(seconds=time.monotonic() - started_at)
                self._note(*_changing(notification, notification.unanswered(str(error), age), *mine))
                return False
            except MailPostponed as error:
                logger.warning("notification %d was postponed: %s", notification.id, error)
                age += timedelta(seconds=time.monotonic() - started_at)
                self._note(*_changing(notification, notification.postponed(str(error), age), *mine))
            except MailRefused as error:
                logger.error("notification %d was refused: %s", notification.id, error)
                self._note(*_changing(notification, notification.refused(str(error)), *mine))
            except MailUncertain as error:
                logger.error("notification %d is uncertain: %s", notification.id, error)
                self._note(*_changing(notification, notification.in_doubt(str(error)), *mine))
            else:
                logger.info("notification %d was sent", notification.id)
                # Whatever lease it has by now.
                self._note(*_changing(notification, notification.sent(), mine[0]))
            return True

    def _hand_over(self, notification):
        """Make the mail and give it to the mail server. Raises what its steps raise, without the mail's secret."""
        with self._poller.interruptible():
            mail, secret = self._made(notification)
        try:
            with self._mailer.measured():
                with self._poller.interruptible():
                    self._connection.begin(mail)
                self._announce_dot(notification)
                self._connection.finish()
        except (MailServerUnreachable, MailPostponed, MailRefused, MailUncertain) as error:
            # A server may quote the link of a mail that it refuses, for operators to read.
            reason = str(error).replace(secret, "…") if secret else str(error)
            raise type(error)(reason[:LONGEST_REASON]) from None
        except BaseException:
            # Without its dot it is no mail.
            self._connection.drop()
            raise

    def _made(self, notification):
        try:
            return self._make_mail(notification)
        except (MailNotNeeded, UsersUnreachable, Interrupted, ServiceUnavailable):
            raise
        except Exception as error:
            # The mail itself is broken. It must not hold up the others: it waits as failed for a retry.
            logger.exception("notification %d is no mail that can be sent", notification.id)
            raise MailRefused(f"The mail could not be made: {error}") from error

    def _announce_dot(self, notification):
        """From here on the server may have it. Raises LeaseLost."""
        announcement = (
            update(Notification)
            .where(Notification.id == notification.id, Notification.lease == notification.lease)
            .where(Notification.leased_until > func.now())
            .values(dot_at=func.now(), leased_until=_from_now(LEASE_SECONDS))
        )
        with self._db.transaction() as session:
            if session.execute(announcement).rowcount == 0:
                raise LeaseLost

    def _hold(self, notification, others, pause):
        """Beside the try: keep its lease, and let others have what was claimed with it, should it be slow."""
        if pause(SLOW_SECONDS):
            return
        self._poller.mark_slow()
        rest = others[:]
        others.clear()
        self._give_back(rest)
        renewal = (
            update(Notification)
            .where(Notification.id == notification.id, Notification.lease == notification.lease)
            .where(Notification.leased_until.is_not(None))
            .values(leased_until=_from_now(LEASE_SECONDS), next_try_at=_from_now(LEASE_SECONDS))
        )
        while True:
            self._execute_if_possible(renewal)
            if pause(RENEW_SECONDS):
                return

    def _give_back(self, mails):
        if mails:
            ids, lease = [notification.id for notification, _ in mails], mails[0][0].lease
            mine = Notification.id.in_(ids), Notification.lease == lease
            self._execute_if_possible(update(Notification).where(*mine).values(GIVEN_BACK))

    def _execute_if_possible(self, statement):
        try:
            with self._db.transaction() as session:
                session.execute(statement)
        except ServiceUnavailable as error:
            logger.warning("leases of mails end by themselves: %r", error)

    def _note(self, *statements):
        """Once the database takes it: only this sender knows what came of the mail."""
        pause_seconds, longest_seconds = NOTE_PAUSES_SECONDS
        while True:
            try:
                with self._db.transaction() as session:
                    for statement in statements:
                        session.execute(statement)
                return
            except ServiceUnavailable as error:
                logger.warning("what came of a mail is noted in %s s: %r", pause_seconds, error)
            except Exception:
                logger.exception("what came of a mail is noted in %s s", pause_seconds)
            self._poller.pause(pause_seconds)
            pause_seconds = min(2 * pause_seconds, longest_seconds)


def _claim(session, due):
    """[(notification, its age)], the oldest first, held by a lease of their own."""
    ids = due.with_for_update(skip_locked=True).cte("due")
    claim = (
        update(Notification)
        .where(Notification.id.in_(select(ids.c.id)))
        .values(lease=uuid4(), leased_until=_from_now(LEASE_SECONDS), next_try_at=_from_now(LEASE_SECONDS))
        .returning(Notification, func.now() - Notification.created_at)
        .execution_options(synchronize_session=False)
    )
    return sorted((tuple(row) for row in session.execute(claim)), key=lambda row: row[0].id)


def _doubt_those_left_with_the_server(session):
    left = select(Notification).where(Notification.dot_at.is_not(None), Notification.leased_until <= func.now())
    for notification in session.scalars(left.with_for_update(skip_locked=True)):
        reason = f"the mail server may have it: its sender was lost after {notification.dot_at:%Y-%m-%d %H:%M:%S} UTC"
        logger.error("notification %d is uncertain: %s", notification.id, reason)
        for statement in _changing(notification, notification.in_doubt(reason), Notification.id == notification.id):
            session.execute(statement)


def _changing(notification, changes, *conditions):
    """The statements that note what came of a try."""
    yield update(Notification).where(*conditions).values(changes)
    is_over = "status" in changes
    is_waited_for = notification.order_id is not None and notification.status == "pending"
    if is_waited_for and (not is_over or notification.tries > 0):
        # Its order's later mails wait for it: with many of them due, each claim would have to look at all.
        later = Notification.order_id == notification.order_id, Notification.sequence > notification.sequence
        waiting = Notification.status == "pending", Notification.leased_until.is_(None)
        next_try_at = func.now() if is_over else changes["next_try_at"]
        yield update(Notification).where(*later, *waiting).values(next_try_at=next_try_at)


def _from_now(seconds):
    return func.now() + timedelta(seconds=seconds)
