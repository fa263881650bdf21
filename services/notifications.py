"""notifications: what customers are told, by mail and by push, from a table that is the record.

Owns:     notifications_db
RPC:      list_notifications, get_notification, mark_read, retry_notification, summarize_mails,
          list_parked, count_parked, replay_parked, discard_parked, replay_all_parked, discard_all_parked,
          health
Emits:    notification.created (a hint)
Handles:  order.created, order.status.updated,
          user.registered, user.verification_requested, user.password_reset_requested
Calls:    users.create_mailed_token

A handler only stores. `send_order_mails` and `send_account_mails` send from the table, as
services/notifications_mail.py says, which also names the one way in which a mail can come twice.

To an address that was never proven at most 6 order mails go in an hour. What comes beyond is stored, pushed and
listed as ever, but mailed in a summary, an hour after the first that it sums up: one such mail an hour at most.

Account mails are those to an address's owner about the account itself. Their links open it, so they are
for the inbox alone: no push, no customer's list. The token is asked of users for each try, and lives in
the mail and nowhere else.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from nameko.extensions import DependencyProvider
from prometheus_client import Gauge
from sqlalchemy import and_, case, func, literal, or_, select, union_all
from sqlalchemy.dialects.postgresql import insert

from contracts.notifications import (
    NotificationCreated,
    NotificationNotFound,
    NotificationQuery,
    NotificationView,
    ReadMark,
)
from contracts.orders import OrderCreated, OrderStatusUpdated
from contracts.production import demo_settings
from contracts.settings import ShopSettings
from contracts.types import ParkedMessageNotFound, ParkedQuery, ParkedSelection, fold_address, load, load_id
from contracts.users import MailNotNeeded, UserPasswordResetRequested, UserRegistered, UserVerificationRequested
from nameko_reliable.database import Database
from nameko_reliable.errors import RpcTimeout, ServiceUnavailable
from nameko_reliable.events import event_handler
from nameko_reliable.hints import Hints
from nameko_reliable.messages import from_payload, to_payload
from nameko_reliable.parking import ParkingLot
from nameko_reliable.polling import Bell, crew, wait_until
from nameko_reliable.rpc import ClusterClient, rpc
from nameko_reliable.settings import Settings
from nameko_reliable.telemetry.gauges import QueryGauge
from nameko_reliable.telemetry.logs import LogContext, log_fields
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.telemetry.tracing import Tracing, traceparent
from nameko_reliable.timers import timer
from services.notifications_mail import Sender, UsersUnreachable
from services.notifications_models import (
    EVENT_CLASSES,
    EVENT_TYPES,
    SUMMARY_NAME,
    UNPROVEN_WINDOW,
    Answer,
    Notification,
    OrderSummary,
    lock_address,
)
from services.notifications_smtp import MOST_CONNECTIONS, Mailer

NOTIFICATION_VIEW = NotificationView()
TOKEN_SECONDS = 1.5
# Less than a caller waits.
RETRY_SECONDS = 3

# Where the links of account mails lead. Their event types are also the purposes of their tokens.
TOKEN_PAGES = {"email_verification": "verify-email", "password_reset": "reset-password"}

MAILS = Gauge("forage_mails", "Mails that were not sent. status: pending, failed, uncertain.", ["service", "status"])
COUNT_MAILS = union_all(
    # Each by its own partial index.
    *(
        select(literal(status), func.count()).where(Notification.status == status)
        for status in ("pending", "failed", "uncertain")
    )
)
OLDEST_PENDING = Gauge("forage_mails_oldest_pending_age_seconds", "How long the oldest mail is pending.", ["service"])
IS_SUMMARY = and_(Notification.order_id.is_(None), Notification.event_name == SUMMARY_NAME)
# A summary is to go out so long after it was made.
DUE_SINCE = Notification.created_at + case((IS_SUMMARY, UNPROVEN_WINDOW), else_=timedelta(0))
AGE_OF_OLDEST_PENDING = select(func.coalesce(func.extract("epoch", func.now() - func.min(DUE_SINCE)), 0)).where(
    Notification.status == "pending",
    # Not a summary whose time is to come.
    or_(Notification.next_try_at <= func.now(), Notification.tries > 0),
)


class Letters(DependencyProvider):
    """Renders events to mails with the templates of `templates/email`, a folder for each event's name."""

    def setup(self):
        config = self.container.config
        self._shop_url, self._sender = config["FRONTEND_URL"], config["MAIL_FROM"]
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent.parent / "templates" / "email"),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def get_dependency(self, worker_ctx):
        return self

    def words(self, event):
        """The subject and the sentence of an event, for lists and pushes."""
        words = self._templates.get_template(f"{_folder(event)}/_words.jinja").make_module({"event": event})
        return str(words.subject), str(words.text)

    def order_mail(self, event, recipient):
        """An EmailMessage with a text and an HTML part."""
        return self._compose(event, recipient, order_url=f"{self._shop_url}/orders/{event.order_id}")

    def summary_mail(self, summary, recipient):
        """As `order_mail`."""
        return self._compose(summary, recipient)

    def account_mail(self, event, recipient, token, expires_in):
        """As `order_mail`. expires_in: the token's life in seconds."""
        # In the fragment, which browsers send to nobody.
        link = f"{self._shop_url}/{TOKEN_PAGES[EVENT_TYPES[type(event)]]}#token={token}"
        return self._compose(event, recipient, link=link, expires_in=expires_in)

    def _compose(self, event, recipient, **details):
        details |= {"event": event, "shop_url": self._shop_url}
        mail = EmailMessage()
        mail["From"], mail["To"] = self._sender, recipient
        mail["Subject"] = self._render("subject.txt", details).strip()
        mail["Date"] = format_datetime(event.timestamp)
        mail["Message-ID"] = f"<{event.event_id}@{self._sender.domain}>"
        mail["X-Forage-Event"] = event.name
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(self._render("body.txt", details))
        mail.add_alternative(self._render("body.html", details), subtype="html")
        return mail

    def _render(self, part, details):
        return self._templates.get_template(f"{_folder(details['event'])}/{part}").render(details)


def _folder(event):
    return event.name.replace(".", "_")


class Notifications:
    name = "notifications"

    settings = Settings(ShopSettings, demo_settings, needs=["DB_URIS.notifications", ("SMTP_PASSWORD", "SMTP_USER")])
    db = Database(answers=Answer)
    cluster = ClusterClient()
    hints = Hints()
    bell = Bell()
    letters = Letters()
    mailer = Mailer()
    parking = ParkingLot()
    log_context = LogContext()
    tracing = Tracing()
    metrics = Metrics(prefix="forage")
    mails = QueryGauge(MAILS, COUNT_MAILS)
    oldest_pending = QueryGauge(OLDEST_PENDING, AGE_OF_OLDEST_PENDING)

    @event_handler(OrderCreated)
    def confirm_order(self, event):
        self._store_and_push(event)

    @event_handler(OrderStatusUpdated)
    def tell_status(self, event):
        self._store_and_push(event)

    @event_handler(UserRegistered)
    def send_verification(self, event):
        self._store_account_mail(event)

    @event_handler(UserVerificationRequested)
    def send_verification_again(self, event):
        self._store_account_mail(event)

    @event_handler(UserPasswordResetRequested)
    def send_password_reset(self, event):
        self._store_account_mail(event)

    def _store_and_push(self, event):
        with self.db.transaction() as session:
            notification = self._store(
                session, event, event.user_email, order_id=event.order_id, sequence=event.sequence
            )
            if notification is None:
                return
            if not event.email_verified:
                self._limit(session, notification)
            push = NotificationCreated(
                id=notification.id,
                user_id=event.user_id,
                event_type=EVENT_TYPES[type(event)],
                subject=notification.subject,
                message=notification.message,
                order_id=event.order_id,
                sequence=event.sequence,
            )
            self.hints.after_commit(session, push)

    def _limit(self, session, notification):
        """Have an order mail summed up with others when it is one too many for an address that was never proven."""
        lock_address(session, notification.recipient_email)
        summary_id = Notification.open_summary(session, notification.recipient_email)
        if summary_id is None and notification.is_one_too_many(session):
            summary = OrderSummary(user_id=notification.user_id, user_email=notification.recipient_email)
            values = {"event_name": SUMMARY_NAME, "next_try_at": func.now() + UNPROVEN_WINDOW}
            summary_id = self._store(session, summary, notification.recipient_email, **values).id
        if summary_id is not None:
            notification.join_summary(summary_id)

    def _store_account_mail(self, event):
        with self.db.transaction() as session:
            self._store(session, event, event.email)

    def _store(self, session, event, recipient, **values):
        """The new notification, None for an event that is stored already. values: of its other columns."""
        subject, message = self.letters.words(event)
        self.bell.ring_after_commit(session)
        return session.scalar(
            insert(Notification)
            .values(
                {
                    "event_id": event.event_id,
                    "event_name": event.name,
                    "payload": to_payload(event),
                    "user_id": event.user_id,
                    # Addresses are compared without case.
                    "recipient_email": fold_address(recipient),
                    "subject": subject,
                    "message": message,
                    "request_id": log_fields().get("request_id"),
                    "traceparent": traceparent(),
                    **values,
                }
            )
            # Nor a step of an order to which a release before this one gave another event_id.
            .on_conflict_do_nothing()
            .returning(Notification)
        )

    @crew(interval_seconds=1, most=MOST_CONNECTIONS)
    def send_order_mails(self, member):
        self._send(member, Notification.due_order_mails())

    @crew(interval_seconds=1, most=MOST_CONNECTIONS)
    def send_account_mails(self, member):
        """By others than those of orders, which never wait for users."""
        self._send(member, Notification.due_account_mails())

    def _send(self, member, due):
        with self.mailer.connection() as connection:
            Sender(self.db, self.mailer, connection, self.tracing, member, due, self._make_mail).send_all()

    def _make_mail(self, notification):
        """(EmailMessage, its token or None). Raises UsersUnreachable, MailNotNeeded."""
        if notification.is_summary:
            return self.letters.summary_mail(self._summary(notification), notification.recipient_email), None
        event = from_payload(EVENT_CLASSES[notification.event_name], notification.payload)
        if notification.order_id is not None:
            return self.letters.order_mail(event, notification.recipient_email), None
        created = self._create_token(event)
        mail = self.letters.account_mail(
            event, notification.recipient_email, token=created["token"], expires_in=created["expires_in"]
        )
        return mail, created["token"]

    def _summary(self, notification):
        """What the mail says. Nothing joins the summary any more."""
        with self.db.transaction() as session:
            lock_address(session, notification.recipient_email)
            last, total = notification.orders_summed_up(session)
        orders = tuple(from_payload(EVENT_CLASSES[each.event_name], each.payload) for each in last)
        summary = from_payload(OrderSummary, notification.payload)
        return replace(summary, timestamp=datetime.now(UTC), orders=orders, total=total)

    def _create_token(self, event):
        """{"token", "expires_in"} of users. Raises MailNotNeeded, UsersUnreachable."""
        try:
            return self.cluster.within(TOKEN_SECONDS, log_fields().get("request_id")).users.create_mailed_token(
                user_id=event.user_id, email=event.email, purpose=EVENT_TYPES[type(event)]
            )
        except (ServiceUnavailable, RpcTimeout) as error:
            raise UsersUnreachable("users, which makes the link's token, does not answer") from error

    @rpc
    def retry_notification(self, notification_id, user_id=None):
        """Try a failed or uncertain mail once more, now, and return the notification after that: sent, or failed again.

        It is still pending when that takes more than RETRY_SECONDS.
        user_id: whose it must be, None for anybody's. Raises NotificationNotFound, NotFailed, and MailNotNeeded for
        an account mail that has nothing to say any more: the notification is then gone.
        """
        with self.db.transaction() as session:
            retried = Answer.once(session, self.db.call_id, lambda: self._retry(session, notification_id, user_id))
        of_retry = select(Notification).where(Notification.id == retried["id"])

        def is_tried():
            with self.db.transaction() as session:
                return session.scalar(of_retry.where(Notification.by_hand)) is None

        wait_until(is_tried, RETRY_SECONDS)
        with self.db.transaction() as session:
            notification = session.scalar(of_retry)
        if notification is None:
            raise MailNotNeeded
        return NOTIFICATION_VIEW.dump(notification)

    def _retry(self, session, notification_id, user_id):
        """Have it sent next. {id}, which is all that a repeat of the call has to know."""
        notification = self._find(session, notification_id, user_id, lock=True)
        notification.try_by_hand()
        self.bell.ring_after_commit(session)
        return {"id": notification.id}

    @rpc
    def list_notifications(self, user_id=None, **query):
        """{notifications, total}, newest first. user_id: whose, None for everybody's, account mails and summaries too.

        query: as contracts.notifications.NotificationQuery. Raises InvalidInput.
        """
        query = load(NotificationQuery(), query)
        conditions = _seen_by(user_id)
        if query["recipient"] is not None:
            conditions.append(Notification.recipient_email == fold_address(query["recipient"]))
        if query["status"] is not None:
            conditions.append(Notification.status == query["status"])
        if query["order_id"] is not None:
            conditions.append(Notification.order_id == query["order_id"])
        if query["unread"] is not None:
            conditions.append(Notification.read_at.is_(None) == query["unread"])
        if query["after_id"] is not None:
            conditions.append(Notification.id > query["after_id"])
        order = Notification.id.desc() if query["after_id"] is None else Notification.id
        page = select(Notification).where(*conditions).order_by(order)
        page = page.limit(query["limit"]).offset(query["offset"])
        with self.db.transaction() as session:
            total = session.scalar(select(func.count()).select_from(Notification).where(*conditions))
            notifications = NOTIFICATION_VIEW.dump(session.scalars(page), many=True)
        return {"notifications": notifications, "total": total}

    @rpc
    def summarize_mails(self):
        """{failed, pending, uncertain}: how many of each there are."""
        with self.db.transaction() as session:
            return dict(session.execute(COUNT_MAILS).all())

    @rpc
    def get_notification(self, notification_id, user_id=None):
        """user_id: whose it must be, None for anybody's. Raises NotificationNotFound."""
        with self.db.transaction() as session:
            return NOTIFICATION_VIEW.dump(self._find(session, notification_id, user_id))

    @rpc
    def mark_read(self, notification_id, user_id, read=True):
        """Mark the customer's own notification read or unread. Raises NotificationNotFound."""
        read = load(ReadMark(), {"read": read})["read"]
        with self.db.transaction() as session:
            notification = self._find(session, notification_id, user_id, lock=True)
            if read != (notification.read_at is not None):
                notification.read_at = func.now() if read else None
            session.flush()
            return NOTIFICATION_VIEW.dump(notification)

    def _find(self, session, notification_id, user_id, lock=False):
        wanted = select(Notification).where(
            Notification.id == load_id(notification_id, "notification_id"), *_seen_by(user_id)
        )
        notification = session.scalar(wanted.with_for_update() if lock else wanted)
        if notification is None:
            raise NotificationNotFound(notification_id)
        return notification

    @rpc
    def list_parked(self, limit=50, offset=0):
        """{messages: [{message_id, queue, reason, attempts, parked_at, body}], total}, newest first.

        Of more than 1,000 the oldest 1,000 are listed. Raises ParkingLotBusy, as all below.
        """
        return self.parking.list(**load(ParkedQuery(), {"limit": limit, "offset": offset}))

    @rpc
    def count_parked(self):
        return self.parking.count()

    @rpc
    def replay_parked(self, message_id):
        """Hand the message to its handler once more. Raises ParkedMessageNotFound, NotReplayable, TooManyParked."""
        if not self.parking.replay(message_id):
            raise ParkedMessageNotFound(message_id)

    @rpc
    def discard_parked(self, message_id):
        """Drop the message for good. Raises ParkedMessageNotFound, TooManyParked."""
        if not self.parking.discard(message_id):
            raise ParkedMessageNotFound(message_id)

    @rpc
    def replay_all_parked(self, queue=None, reason=None, left=None):
        """Hand up to 500 messages to their handlers once more, of this queue, with this in their reason.

        Returns {done, kept, left}: call again with its `left` until that is 0.
        """
        return self.parking.replay_all(**load(ParkedSelection(), {"queue": queue, "reason": reason, "left": left}))

    @rpc
    def discard_all_parked(self, queue=None, reason=None, left=None):
        """Drop up to 500 messages for good; as replay_all_parked."""
        return self.parking.discard_all(**load(ParkedSelection(), {"queue": queue, "reason": reason, "left": left}))

    @rpc
    def health(self):
        self.db.check()
        return {"status": "up"}

    @timer(interval=3600)
    def forget_answers(self):
        with self.db.transaction() as session:
            Answer.forget_old(session)


def _seen_by(user_id):
    """Conditions: None sees all, a customer their own, but no account mails and no summaries of what they see."""
    if user_id is None:
        return []
    return [Notification.user_id == load_id(user_id, "user_id"), Notification.order_id.is_not(None)]
