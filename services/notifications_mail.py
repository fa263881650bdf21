"""How mails are sent from the table: claim, send, record the outcome.

A sender claims some due mails in one statement and holds them with a lease, by the database's clock. It sends them one
by one over a kept connection, outside of any transaction. Right before the final dot of a mail it writes `dot_at`. This
fails once the lease is over, because another sender may have sent the mail since. The server's answer is recorded at
once. Each step is a statement of services/notifications_statements.py, in autocommit: a step that is late does no harm.

- If a sender dies or hangs before the dot, its lease ends and another sends the mail.
- If it dies or hangs between the dot and the record, the server may have the mail, which becomes `uncertain`.

Only an `uncertain` mail can be sent twice: sender, connection or database was lost between `dot_at` and the record, or
the sender was frozen there for longer than the pause before the next try. Its Message-ID is fixed, so that mail
programs may show it once.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Row

from contracts.users import MailNotNeeded
from nameko_reliable.database import WorkerDatabase
from nameko_reliable.errors import ServiceUnavailable
from nameko_reliable.polling import Interrupted, Poller, in_background
from nameko_reliable.statements import Statement, run
from nameko_reliable.telemetry.logs import bind_log_fields
from nameko_reliable.telemetry.tracing import WorkerSpans
from services.notifications_mime import Mail
from services.notifications_models import ClaimedMail, Outcome
from services.notifications_smtp import (
    MailConnection,
    Mailer,
    MailPostponed,
    MailRefused,
    MailServerUnreachable,
    MailUncertain,
)
from services.notifications_statements import (
    CLAIM_SIZE,
    DELETE_MAIL,
    LOCK_ORPHANED_MAILS,
    MAKE_LATER_MAILS_DUE,
    RECORD_DOT,
    RECORD_OUTCOME,
    RELEASE_MAILS,
    RENEW_LEASE,
)

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30
RENEW_SECONDS = 10
# After this time the mails that were claimed with a slow one are released, for other senders.
SLOW_SECONDS = 2
# The number of senders while more mails are due than one of them claims.
BACKLOG_SENDERS = 4
# Between two tries to record an outcome: the first pause and the longest.
RECORD_PAUSES_SECONDS = (0.2, 5)
MAX_REASON_LENGTH = 1000


class UsersUnreachable(Exception):
    """The users service makes no token for the link at present. This says nothing about the mail itself."""


class LeaseLost(Exception):
    """Another sender may have claimed the mail."""


class Sender:
    """Sends due mails over one connection, until its poller ends.

    claim: CLAIM_ORDER_MAILS or CLAIM_ACCOUNT_MAILS. make_mail(mail): the mail, and the secret in it or None. It raises
    UsersUnreachable, or MailNotNeeded, after which the notification is deleted.
    """

    def __init__(
        self,
        db: WorkerDatabase,
        mailer: Mailer,
        connection: MailConnection,
        tracing: WorkerSpans,
        poller: Poller,
        claim: Statement,
        make_mail: Callable[[ClaimedMail], tuple[Mail, str | None]],
    ) -> None:
        self._db, self._mailer, self._connection, self._tracing = db, mailer, connection, tracing
        self._poller, self._claim, self._make_mail = poller, claim, make_mail
        self._may_have_more = True

    def send_all(self) -> None:
        while self._poller.next_round(self._may_have_more):
            try:
                self._send_some()
            except ServiceUnavailable as error:
                logger.warning("mails wait: %r", error)
                self._may_have_more = False

    def _send_some(self) -> None:
        """Claim mails and send them."""
        claimed_at = time.monotonic()
        most = math.ceil(CLAIM_SIZE * self._poller.share)
        rows = self._db.execute(self._claim, lease=uuid4(), seconds=LEASE_SECONDS, most=most)
        # After fewer rows, another claim at once would find nothing.
        self._may_have_more = len(rows) == most
        if self._may_have_more:
            # A sender mostly waits for the server and the database, so several are faster than one.
            self._poller.mark_slow(max_pollers=BACKLOG_SENDERS)
        mails = sorted((ClaimedMail(*columns) for *columns, waits in rows if not waits), key=lambda mail: mail.id)
        if not mails:
            self._connection.close_if_idle()
            return
        try:
            # Only the mail that is being sent has its lease renewed. The others are released before theirs ends.
            while mails and time.monotonic() < claimed_at + LEASE_SECONDS / 2:
                mail = mails.pop(0)
                with (
                    self._tracing.continued(mail.traceparent),
                    bind_log_fields(request_id=mail.request_id, event_id=mail.event_id),
                ):
                    if not self._send(mail, mails):
                        self._may_have_more = False
                        return
            if mails:
                self._may_have_more = True
        finally:
            self._release(mails)

    def _send(self, mail: ClaimedMail, others: list[ClaimedMail]) -> bool:
        """Try to send the mail, and record the outcome. False if other mails would most likely fail too.

        others: the mails claimed with it. Emptied when this one turns out to be slow.
        """
        with in_background(lambda pause: self._keep_lease(mail, others, pause), after_seconds=SLOW_SECONDS):
            started_at = time.monotonic()

            def age() -> timedelta:
                return mail.age + timedelta(seconds=time.monotonic() - started_at)

            try:
                self._deliver(mail)
            except MailNotNeeded:
                logger.info("notification %d is not needed any more", mail.id)
                self._record(DELETE_MAIL, id=mail.id, lease=mail.lease)
            except LeaseLost:
                logger.warning("notification %d was left, since another sender may have claimed it", mail.id)
            except (Interrupted, ServiceUnavailable) as error:
                # dot_at may have been written, but the dot was not sent.
                logger.warning("notification %d waits: %r", mail.id, error)
                self._record(RELEASE_MAILS, ids=[mail.id], lease=mail.lease)
                return False
            except (MailServerUnreachable, UsersUnreachable) as error:
                logger.warning("notification %d waits: %s", mail.id, error)
                self._record_outcome(mail, mail.unreachable(str(error), age()))
                return False
            except MailPostponed as error:
                logger.warning("notification %d was postponed: %s", mail.id, error)
                self._record_outcome(mail, mail.postponed(str(error), age()))
            except MailRefused as error:
                logger.error("notification %d was refused: %s", mail.id, error)
                self._record_outcome(mail, mail.refused(str(error)))
            except MailUncertain as error:
                logger.error("notification %d is uncertain: %s", mail.id, error)
                self._record_outcome(mail, mail.uncertain(str(error)))
            else:
                logger.info("notification %d was sent", mail.id)
                self._record_outcome(mail, mail.sent())
            return True

    def _deliver(self, mail: ClaimedMail) -> None:
        """Make the mail and send it. Raises the errors of these steps, without the mail's secret in them."""
        with self._poller.interruptible():
            made, secret = self._make(mail)
        try:
            with self._mailer.measured():
                with self._poller.interruptible():
                    self._connection.begin(made)
                self._record_dot(mail)
                self._connection.finish()
        except (MailServerUnreachable, MailPostponed, MailRefused, MailUncertain) as error:
            # A server may quote the link of a mail that it refuses. Operators must not read it.
            reason = str(error).replace(secret, "…") if secret else str(error)
            raise type(error)(reason[:MAX_REASON_LENGTH]) from None
        except BaseException:
            # Without its final dot the server drops the mail.
            self._connection.drop()
            raise

    def _make(self, mail: ClaimedMail) -> tuple[Mail, str | None]:
        try:
            return self._make_mail(mail)
        except (MailNotNeeded, UsersUnreachable, Interrupted, ServiceUnavailable):
            raise
        except Exception as error:
            # The mail itself is broken. It is failed, so it does not hold up the others, and can be retried.
            logger.exception("the mail of notification %d could not be made", mail.id)
            raise MailRefused(f"The mail could not be made: {error}") from error

    def _record_dot(self, mail: ClaimedMail) -> None:
        """Record that the server may have the mail from now on. Raises LeaseLost."""
        if not self._db.execute(RECORD_DOT, id=mail.id, lease=mail.lease, seconds=LEASE_SECONDS):
            raise LeaseLost

    def _keep_lease(self, mail: ClaimedMail, others: list[ClaimedMail], pause: Callable[[float], bool]) -> None:
        """The try is slow: release the mails that were claimed with this one, and renew its lease until the end."""
        self._poller.mark_slow()
        unsent = others[:]
        others.clear()
        self._release(unsent)
        self._may_have_more = self._may_have_more or bool(unsent)
        while True:
            self._execute_if_possible(RENEW_LEASE, id=mail.id, lease=mail.lease, seconds=LEASE_SECONDS)
            if pause(RENEW_SECONDS):
                return

    def _release(self, mails: list[ClaimedMail]) -> None:
        if mails:
            self._execute_if_possible(RELEASE_MAILS, ids=[mail.id for mail in mails], lease=mails[0].lease)

    def _execute_if_possible(self, statement: Statement, **parameters: Any) -> None:
        """Execute a statement whose failure only delays mails. Raises nothing: a sender must go on."""
        try:
            self._db.execute(statement, **parameters)
        except ServiceUnavailable as error:
            logger.warning("could not change when mails are due, or their leases, which end by themselves: %r", error)
        except Exception:
            logger.exception("could not change when mails are due, or their leases, which end by themselves")

    def _record_outcome(self, mail: ClaimedMail, outcome: Outcome) -> None:
        rows = self._record(RECORD_OUTCOME, id=mail.id, lease=mail.lease, **vars(outcome))
        if mail.is_waited_for and outcome.is_over and any(row.has_later for row in rows):
            self._execute_if_possible(MAKE_LATER_MAILS_DUE, order_id=mail.order_id, sequence=mail.sequence)
            self._may_have_more = True

    def _record(self, statement: Statement, **parameters: Any) -> Sequence[Row[Any]]:
        """Try until the database takes it: only this sender knows the outcome."""
        pause_seconds, longest_seconds = RECORD_PAUSES_SECONDS
        while True:
            try:
                return self._db.execute(statement, **parameters)
            except ServiceUnavailable as error:
                logger.warning("the outcome of a mail is recorded in %s s: %r", pause_seconds, error)
            except Exception:
                logger.exception("the outcome of a mail is recorded in %s s", pause_seconds)
            self._poller.pause(pause_seconds)
            pause_seconds = min(2 * pause_seconds, longest_seconds)


def mark_orphaned_mails_uncertain(db: WorkerDatabase) -> None:
    """Record that the mail server may have the mails whose senders were lost after the dot."""
    waited_for: list[ClaimedMail] = []
    try:
        with db.transaction() as session:
            for *columns, dot_at in run(session, LOCK_ORPHANED_MAILS):
                mail = ClaimedMail(*columns)
                lost_after = f"{dot_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
                reason = f"the mail server may have it: its sender was lost after {lost_after}"
                logger.error("notification %d is uncertain: %s", mail.id, reason)
                run(session, RECORD_OUTCOME, id=mail.id, lease=mail.lease, **vars(mail.uncertain(reason)))
                if mail.is_waited_for:
                    waited_for.append(mail)
        for mail in waited_for:
            db.execute(MAKE_LATER_MAILS_DUE, order_id=mail.order_id, sequence=mail.sequence)
    except ServiceUnavailable as error:
        logger.warning("mails whose senders were lost are looked for later: %r", error)
