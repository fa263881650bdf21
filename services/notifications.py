"""notifications: messages to customers, by mail and by push, from a table that is the record.

Owns:     notifications_db
RPC:      list_notifications, get_notification, mark_read, retry_notification, summarize_mails,
          list_parked, count_parked, replay_parked, discard_parked, replay_all_parked, discard_all_parked,
          health
Emits:    notification.created (a hint)
Handles:  order.created, order.status.updated,
          user.registered, user.verification_requested, user.password_reset_requested
Calls:    users.create_mailed_token

Handlers only store. `send_order_mails` and `send_account_mails` send mails from the table: see
services/notifications_mail.py, also for the one case in which a mail can be sent twice.

An address that was never proven gets at most 6 order mails an hour. Further notifications are stored, pushed and
listed, but not mailed one by one: a summary is mailed an hour after the first of them, so at most one an hour.

Account mails are about the account itself. Their links open it, so they are only mailed: they are not pushed, and not
in the customer's list. The users service makes a new token for each try. Only the mail has the token.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Gauge
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from contracts.demo_settings import demo_settings
from contracts.notifications import NotificationCreated, NotificationQuery, NotificationView, ReadMark
from contracts.orders import OrderCreated, OrderEvent, OrderStatusUpdated
from contracts.settings import ShopSettings
from contracts.types import JsonObject, fold_address, load
from contracts.users import (
    MailNotNeeded,
    UserEvent,
    UserPasswordResetRequested,
    UserRegistered,
    UserVerificationRequested,
)
from nameko_reliable.database import Database
from nameko_reliable.errors import RpcTimeout, ServiceUnavailable
from nameko_reliable.events import event_handler
from nameko_reliable.hints import Hints
from nameko_reliable.messages import from_payload, to_payload
from nameko_reliable.parking import parked_messages
from nameko_reliable.polling import Poller, Wakeup, elastic_poll, wait_until
from nameko_reliable.rpc import rpc
from nameko_reliable.settings import Settings
from nameko_reliable.statements import Statement
from nameko_reliable.telemetry.gauges import QueryGauge
from nameko_reliable.telemetry.logs import log_fields
from nameko_reliable.telemetry.tracing import traceparent
from nameko_reliable.timers import timer
from services.base import CheckedParkingLot, Service
from services.notifications_mail import Sender, UsersUnreachable, mark_orphaned_mails_uncertain
from services.notifications_mime import Mail
from services.notifications_models import (
    EVENT_CLASSES,
    EVENT_TYPES,
    Answer,
    Base,
    ClaimedMail,
    Notification,
    OrderSummary,
    is_summary,
    lock_address,
)
from services.notifications_smtp import MAX_CONNECTIONS, Mailer
from services.notifications_statements import (
    AGE_OF_OLDEST_PENDING,
    CLAIM_ACCOUNT_MAILS,
    CLAIM_ORDER_MAILS,
    COUNT_MAILS,
    STORE,
    STORE_FOR_UNPROVEN,
    find_notification,
    orders_summed_up,
    read_notification,
    read_notifications,
)
from services.notifications_templates import MailEvent, MailTemplates

NOTIFICATION_QUERY, NOTIFICATION_VIEW = NotificationQuery(), NotificationView()
TOKEN_SECONDS = 1.5
# Shorter than the deadline of the gateway's calls.
RETRY_SECONDS = 3

UNSENT_MAILS = Gauge(
    "forage_mails", "Mails that were not sent. status: pending, failed, uncertain.", ["service", "status"]
)
OLDEST_PENDING = Gauge("forage_mails_oldest_pending_age_seconds", "How long the oldest mail is pending.", ["service"])


@parked_messages
class Notifications(Service):
    name = "notifications"

    settings = Settings(ShopSettings, demo_settings, needs=["DB_URIS.notifications", ("SMTP_PASSWORD", "SMTP_USER")])
    db = Database(Base, answers=Answer)
    hints = Hints()
    order_mail_wakeup = Wakeup("send_order_mails")
    account_mail_wakeup = Wakeup("send_account_mails")
    templates = MailTemplates()
    mailer = Mailer()
    parking = CheckedParkingLot()
    mails = QueryGauge(UNSENT_MAILS, COUNT_MAILS)
    oldest_pending = QueryGauge(OLDEST_PENDING, AGE_OF_OLDEST_PENDING)

    @event_handler(OrderCreated)
    def confirm_order(self, event: OrderCreated) -> None:
        self._store_and_push(event)

    @event_handler(OrderStatusUpdated)
    def tell_status(self, event: OrderStatusUpdated) -> None:
        self._store_and_push(event)

    @event_handler(UserRegistered)
    def send_verification(self, event: UserRegistered) -> None:
        self._store_account_mail(event)

    @event_handler(UserVerificationRequested)
    def send_verification_again(self, event: UserVerificationRequested) -> None:
        self._store_account_mail(event)

    @event_handler(UserPasswordResetRequested)
    def send_password_reset(self, event: UserPasswordResetRequested) -> None:
        self._store_account_mail(event)

    def _store_and_push(self, event: OrderEvent) -> None:
        columns = self._columns(event, event.user_email, event.order_id, event.sequence)
        if event.email_verified:
            stored = self.db.execute(STORE, **columns)
        else:
            # Stored if the address has reached its limit.
            summary = OrderSummary(user_id=event.user_id, user_email=columns["recipient_email"])
            summary_columns = self._columns(summary, summary.user_email).items()
            stored = self.db.execute(
                STORE_FOR_UNPROVEN, **columns, **{f"summary_{name}": value for name, value in summary_columns}
            )
        if stored:
            push = NotificationCreated(
                id=stored[0].id,
                user_id=event.user_id,
                event_type=EVENT_TYPES[type(event)],
                subject=columns["subject"],
                message=columns["message"],
                order_id=event.order_id,
                sequence=event.sequence,
            )
            self.hints.send(push)
        self.order_mail_wakeup.send()

    def _store_account_mail(self, event: UserEvent) -> None:
        self.db.execute(STORE, **self._columns(event, event.email))
        self.account_mail_wakeup.send()

    def _columns(
        self, event: MailEvent, recipient: str, order_id: int | None = None, sequence: int | None = None
    ) -> dict[str, Any]:
        """The parameters of STORE."""
        subject, message = self.templates.subject_and_message(event)
        return {
            "event_id": event.event_id,
            "event_name": event.name,
            "payload": json.dumps(to_payload(event)),
            "order_id": order_id,
            "sequence": sequence,
            "user_id": event.user_id,
            # Addresses are compared without case.
            "recipient_email": fold_address(recipient),
            "subject": subject,
            "message": message,
            "request_id": log_fields().get("request_id"),
            "traceparent": traceparent(),
        }

    @elastic_poll(interval_seconds=1, max_pollers=MAX_CONNECTIONS)
    def send_order_mails(self, poller: Poller) -> None:
        self._send(poller, CLAIM_ORDER_MAILS)

    @elastic_poll(interval_seconds=1, max_pollers=MAX_CONNECTIONS)
    def send_account_mails(self, poller: Poller) -> None:
        """Has its own pollers, so order mails never wait for the users service."""
        self._send(poller, CLAIM_ACCOUNT_MAILS)

    def _send(self, poller: Poller, claim: Statement) -> None:
        with self.mailer.connection() as connection:
            Sender(self.db, self.mailer, connection, self.tracing, poller, claim, self._make_mail).send_all()

    def _make_mail(self, mail: ClaimedMail) -> tuple[Mail, str | None]:
        """The mail, and the token in it or None. Raises UsersUnreachable, MailNotNeeded."""
        if is_summary(mail):
            return self.templates.summary_mail(self._summary(mail), mail.recipient_email), None
        event = from_payload(EVENT_CLASSES[mail.event_name], mail.payload)
        if mail.order_id is not None:
            return self.templates.order_mail(event, mail.recipient_email), None
        created = self._create_token(event)
        made = self.templates.account_mail(
            event, mail.recipient_email, token=created["token"], expires_in=created["expires_in"]
        )
        return made, created["token"]

    def _summary(self, mail: ClaimedMail) -> OrderSummary:
        """The summary with its orders, which is complete: no notification joins a summary that is being sent."""
        with self.db.transaction() as session:
            lock_address(session, mail.recipient_email)
            last, total = orders_summed_up(session, mail.id)
        orders = tuple(from_payload(EVENT_CLASSES[each.event_name], each.payload) for each in last)
        summary = from_payload(OrderSummary, mail.payload)
        return replace(summary, timestamp=datetime.now(UTC), orders=orders, total=total)

    def _create_token(self, event: UserEvent) -> JsonObject:
        """The answer of users.create_mailed_token. Raises MailNotNeeded, UsersUnreachable."""
        try:
            return self.cluster.within(TOKEN_SECONDS, log_fields().get("request_id")).users.create_mailed_token(
                user_id=event.user_id, email=event.email, purpose=EVENT_TYPES[type(event)]
            )
        except (ServiceUnavailable, RpcTimeout) as error:
            raise UsersUnreachable("the users service, which makes the link's token, does not answer") from error

    @rpc
    def retry_notification(self, notification_id: int, user_id: int | None = None) -> JsonObject:
        """Try a failed or uncertain mail again at once, and return the notification after that try.

        It is sent or failed, or still pending if the try takes more than RETRY_SECONDS.
        user_id: the owner, None for any. Raises NotificationNotFound, NotFailed, and MailNotNeeded for an account mail
        that is no longer needed, whose notification is then deleted.
        """
        with self.db.transaction() as session:
            retried = Answer.once(session, self.db.call_id, lambda: self._retry(session, notification_id, user_id))
        select_retried = select(Notification).where(Notification.id == retried["id"])

        def is_tried() -> bool:
            with self.db.transaction() as session:
                return session.scalar(select_retried.where(Notification.by_hand)) is None

        wait_until(is_tried, RETRY_SECONDS)
        with self.db.transaction() as session:
            notification = session.scalar(select_retried)
        if notification is None:
            raise MailNotNeeded
        return NOTIFICATION_VIEW.write(notification)

    def _retry(self, session: Session, notification_id: int, user_id: int | None) -> JsonObject:
        """Make it the next mail to be sent. Returns {id}: a call that is delivered again needs no more."""
        notification = find_notification(session, notification_id, user_id)
        notification.request_retry()
        wakeup = self.account_mail_wakeup if notification.order_id is None else self.order_mail_wakeup
        wakeup.send_after_commit(session)
        return {"id": notification.id}

    @rpc
    def list_notifications(self, user_id: int | None = None, **query: Any) -> JsonObject:
        """{notifications, total}, newest first. user_id: the owner, None for all, with account mails and summaries.

        query: as contracts.notifications.NotificationQuery. Raises InvalidInput.
        """
        total, notifications = read_notifications(self.db.execute, user_id, load(NOTIFICATION_QUERY, query))
        return {"notifications": notifications, "total": total}

    @rpc
    def summarize_mails(self) -> dict[str, int]:
        """{failed, pending, uncertain}: the number of mails in each status."""
        with self.db.transaction() as session:
            return {status: count for status, count in session.execute(COUNT_MAILS)}

    @rpc
    def get_notification(self, notification_id: int, user_id: int | None = None) -> JsonObject:
        """user_id: the owner, None for any. Raises NotificationNotFound."""
        return read_notification(self.db.execute, notification_id, user_id)

    @rpc
    def mark_read(self, notification_id: int, user_id: int, read: bool = True) -> JsonObject:
        """Mark a customer's notification as read or unread. Raises NotificationNotFound, InvalidInput."""
        read = load(ReadMark(), {"read": read})["read"]
        with self.db.transaction() as session:
            notification = find_notification(session, notification_id, user_id)
            if read != (notification.read_at is not None):
                notification.read_at = func.now() if read else None
            session.flush()
            return NOTIFICATION_VIEW.write(notification)

    @rpc
    def health(self) -> dict[str, str]:
        """{"status": "up"}. Raises DatabaseUnavailable."""
        self.db.check()
        return {"status": "up"}

    @timer(interval=5)
    def mark_orphaned_mails(self) -> None:
        """A mail whose sender was lost after its dot becomes uncertain."""
        mark_orphaned_mails_uncertain(self.db)

    @timer(interval=3600)
    def forget_answers(self) -> None:
        with self.db.transaction() as session:
            Answer.forget_old(session)
