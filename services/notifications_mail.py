"""How mails are sent from the table: claim, send, record the outcome.

A sender claims some due mails in one statement and holds them with a lease, by the database's clock. It sends them one
by one over a kept connection, outside of any transaction. Right before the final dot of a mail it writes `dot_at`. This
fails once the lease is over, because another sender may have sent the mail since. The server's answer is recorded at
once.

- If a sender dies or hangs before the dot, its lease ends and another sends the mail.
- If it dies or hangs between the dot and the record, the server may have the mail, which becomes `uncertain`.

Only an `uncertain` mail can be sent twice: sender, connection or database was lost between `dot_at` and the record, or
the sender was frozen there for longer than the pause before the next try. Its Message-ID is fixed, so that mail
programs may show it once.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import ColumnElement, Executable, Select, delete, func, select, update
from sqlalchemy.orm import Session

from contracts.users import MailNotNeeded
from nameko_reliable.database import WorkerDatabase
from nameko_reliable.errors import ServiceUnavailable
from nameko_reliable.polling import Interrupted, Poller, in_background
from nameko_reliable.telemetry.logs import bind_log_fields
from nameko_reliable.telemetry.tracing import WorkerSpans
from services.notifications_mime import Mail
from services.notifications_models import UNCLAIMED, Changes, Notification
from services.notifications_smtp import (
    MailConnection,
    Mailer,
    MailPostponed,
    MailRefused,
    MailServerUnreachable,
    MailUncertain,
)

logger = logging.getLogger(__name__)

CLAIM_SIZE = 20
LEASE_SECONDS = 30
RENEW_SECONDS = 10
# After this time the mails that were claimed with a slow one are released, for other senders.
SLOW_SECONDS = 2
# The first pause and the longest.
RECORD_PAUSES_SECONDS = (0.2, 5)
MAX_REASON_LENGTH = 1000
# A released mail is due since it was stored, so it goes before younger mails.
RELEASED = UNCLAIMED | {"next_try_at": Notification.created_at}

# Claimed mails, each with its age.
Claim = list[tuple[Notification, timedelta]]


class UsersUnreachable(Exception):
    """The users service makes no token for the link at present. This says nothing about the mail itself."""


class LeaseLost(Exception):
    """Another sender may have claimed the mail."""


class Sender:
    """Sends due mails over one connection, until its poller ends.

    due: a select of the ids of due mails. make_mail(notification): the mail, and the secret in it or None. It raises
    UsersUnreachable, or MailNotNeeded, after which the notification is deleted.
    """

    def __init__(
        self,
        db: WorkerDatabase,
        mailer: Mailer,
        connection: MailConnection,
        tracing: WorkerSpans,
        poller: Poller,
        due: Select[tuple[int]],
        make_mail: Callable[[Notification], tuple[Mail, str | None]],
    ) -> None:
        self._db, self._mailer, self._connection, self._tracing = db, mailer, connection, tracing
        self._poller, self._due, self._make_mail = poller, due, make_mail

    def send_all(self) -> None:
        found = True
        while self._poller.next_round(found):
            try:
                found = self._send_some()
            except ServiceUnavailable as error:
                logger.warning("mails wait: %r", error)
                found = False

    def _send_some(self) -> bool:
        """Claim mails and send them. True while there may be more to send."""
        claimed_at = time.monotonic()
        with self._db.transaction() as session:
            _mark_orphaned_mails_uncertain(session)
            mails = _claim(session, self._due.limit(math.ceil(CLAIM_SIZE * self._poller.share)))
        if not mails:
            self._connection.close_if_idle()
            return False
        try:
            # Only the mail that is being sent has its lease renewed. The others are released before theirs ends.
            while mails and time.monotonic() < claimed_at + LEASE_SECONDS / 2:
                notification, age = mails.pop(0)
                with (
                    self._tracing.continued(notification.traceparent),
                    bind_log_fields(request_id=notification.request_id, event_id=notification.event_id),
                ):
                    if not self._send(notification, age, mails):
                        return False
        finally:
            self._release(mails)
        return True

    def _send(self, notification: Notification, age: timedelta, others: Claim) -> bool:
        """Try to send the mail, and record the outcome. False if other mails would most likely fail too.

        others: the mails claimed with it. Emptied when this one turns out to be slow.
        """
        with in_background(lambda pause: self._keep_lease(notification, others, pause)):
            started_at = time.monotonic()
            own_row = Notification.id == notification.id, Notification.lease == notification.lease
            try:
                self._deliver(notification)
            except MailNotNeeded:
                logger.info("notification %d is not needed any more", notification.id)
                self._record(delete(Notification).where(*own_row))
                return True
            except LeaseLost:
                logger.warning("notification %d was left, since another sender may have claimed it", notification.id)
                return True
            except (Interrupted, ServiceUnavailable) as error:
                # dot_at may have been written, but the dot was not sent.
                logger.warning("notification %d waits: %r", notification.id, error)
                self._record(update(Notification).where(*own_row).values(RELEASED))
                return False
            except (MailServerUnreachable, UsersUnreachable) as error:
                logger.warning("notification %d waits: %s", notification.id, error)
                age += timedelta(seconds=time.monotonic() - started_at)
                self._record(*_outcome_statements(notification, notification.unreachable(str(error), age), *own_row))
                return False
            except MailPostponed as error:
                logger.warning("notification %d was postponed: %s", notification.id, error)
                age += timedelta(seconds=time.monotonic() - started_at)
                self._record(*_outcome_statements(notification, notification.postponed(str(error), age), *own_row))
            except MailRefused as error:
                logger.error("notification %d was refused: %s", notification.id, error)
                self._record(*_outcome_statements(notification, notification.refused(str(error)), *own_row))
            except MailUncertain as error:
                logger.error("notification %d is uncertain: %s", notification.id, error)
                self._record(*_outcome_statements(notification, notification.uncertain(str(error)), *own_row))
            else:
                logger.info("notification %d was sent", notification.id)
                # Under any lease: another sender may hold it by now.
                self._record(*_outcome_statements(notification, notification.sent(), own_row[0]))
            return True

    def _deliver(self, notification: Notification) -> None:
        """Make the mail and send it. Raises the errors of these steps, without the mail's secret in them."""
        with self._poller.interruptible():
            mail, secret = self._make(notification)
        try:
            with self._mailer.measured():
                with self._poller.interruptible():
                    self._connection.begin(mail)
                self._record_dot(notification)
                self._connection.finish()
        except (MailServerUnreachable, MailPostponed, MailRefused, MailUncertain) as error:
            # A server may quote the link of a mail that it refuses. Operators must not read it.
            reason = str(error).replace(secret, "…") if secret else str(error)
            raise type(error)(reason[:MAX_REASON_LENGTH]) from None
        except BaseException:
            # Without its final dot the server drops the mail.
            self._connection.drop()
            raise

    def _make(self, notification: Notification) -> tuple[Mail, str | None]:
        try:
            return self._make_mail(notification)
        except (MailNotNeeded, UsersUnreachable, Interrupted, ServiceUnavailable):
            raise
        except Exception as error:
            # The mail itself is broken. It is failed, so it does not hold up the others, and can be retried.
            logger.exception("the mail of notification %d could not be made", notification.id)
            raise MailRefused(f"The mail could not be made: {error}") from error

    def _record_dot(self, notification: Notification) -> None:
        """Record that the server may have the mail from now on. Raises LeaseLost."""
        update_dot = (
            update(Notification)
            .where(Notification.id == notification.id, Notification.lease == notification.lease)
            .where(Notification.leased_until > func.now())
            .values(dot_at=func.now(), leased_until=_from_now(LEASE_SECONDS))
            .returning(Notification.id)
        )
        with self._db.transaction() as session:
            if session.execute(update_dot).first() is None:
                raise LeaseLost

    def _keep_lease(self, notification: Notification, others: Claim, pause: Callable[[float], bool]) -> None:
        """If the try is slow, release the mails that were claimed with this one, and renew its lease until the end."""
        if pause(SLOW_SECONDS):
            return
        self._poller.mark_slow()
        unsent = others[:]
        others.clear()
        self._release(unsent)
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

    def _release(self, mails: Claim) -> None:
        if mails:
            ids, lease = [notification.id for notification, _ in mails], mails[0][0].lease
            own_row = Notification.id.in_(ids), Notification.lease == lease
            self._execute_if_possible(update(Notification).where(*own_row).values(RELEASED))

    def _execute_if_possible(self, statement: Executable) -> None:
        try:
            with self._db.transaction() as session:
                session.execute(statement)
        except ServiceUnavailable as error:
            logger.warning("could not change the leases of mails, which end by themselves: %r", error)

    def _record(self, *statements: Executable) -> None:
        """Record an outcome. Try until the database takes it: only this sender knows the outcome."""
        pause_seconds, longest_seconds = RECORD_PAUSES_SECONDS
        while True:
            try:
                with self._db.transaction() as session:
                    for statement in statements:
                        session.execute(statement)
                return
            except ServiceUnavailable as error:
                logger.warning("the outcome of a mail is recorded in %s s: %r", pause_seconds, error)
            except Exception:
                logger.exception("the outcome of a mail is recorded in %s s", pause_seconds)
            self._poller.pause(pause_seconds)
            pause_seconds = min(2 * pause_seconds, longest_seconds)


def _claim(session: Session, due: Select[tuple[int]]) -> Claim:
    """Claim due mails with a new lease. The oldest is first."""
    ids = due.with_for_update(skip_locked=True).cte("due")
    claim = (
        update(Notification)
        .where(Notification.id.in_(select(ids.c.id)))
        .values(lease=uuid4(), leased_until=_from_now(LEASE_SECONDS), next_try_at=_from_now(LEASE_SECONDS))
        .returning(Notification, func.now() - Notification.created_at)
        .execution_options(synchronize_session=False)
    )
    return sorted((tuple(row) for row in session.execute(claim)), key=lambda row: row[0].id)


def _mark_orphaned_mails_uncertain(session: Session) -> None:
    orphaned = select(Notification).where(Notification.dot_at.is_not(None), Notification.leased_until <= func.now())
    for notification in session.scalars(orphaned.with_for_update(skip_locked=True)):
        reason = f"the mail server may have it: its sender was lost after {notification.dot_at:%Y-%m-%d %H:%M:%S} UTC"
        logger.error("notification %d is uncertain: %s", notification.id, reason)
        for statement in _outcome_statements(
            notification, notification.uncertain(reason), Notification.id == notification.id
        ):
            session.execute(statement)


def _outcome_statements(
    notification: Notification, changes: Changes, *conditions: ColumnElement[bool]
) -> Iterator[Executable]:
    """The statements that record the outcome of a try."""
    yield update(Notification).where(*conditions).values(changes)
    is_over = "status" in changes
    is_waited_for = notification.order_id is not None and notification.status == "pending"
    # The order's later mails wait for this one. If many of them stayed due, each claim would read them all, so they are
    # postponed with it. When it is over they are due again, unless it was the first try, which postponed none.
    if is_waited_for and (not is_over or notification.tries > 0):
        later = Notification.order_id == notification.order_id, Notification.sequence > notification.sequence
        waiting = Notification.status == "pending", Notification.leased_until.is_(None)
        next_try_at = func.now() if is_over else changes["next_try_at"]
        yield update(Notification).where(*later, *waiting).values(next_try_at=next_try_at)


def _from_now(seconds: float) -> ColumnElement[datetime]:
    return func.now() + timedelta(seconds=seconds)
