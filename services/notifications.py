"""notifications: what customers are told, by mail and by push, from a table that is the record.

Owns:     notifications_db
RPC:      list_notifications, get_notification, mark_read, retry_notification,
          list_parked, replay_parked, discard_parked, health
Emits:    notification.created (a hint)
Handles:  order.created, order.status.updated

A handler only stores. `deliver_next` sends from the table and holds its row through the send. The one
window for a double mail lies between the SMTP server's acceptance and our commit: whatever interrupts
it, the mail goes out again. Its Message-ID is fixed, so that mail programs may show it once.
"""

import logging
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from pathlib import Path
from uuid import UUID

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from nameko.extensions import DependencyProvider
from nameko.timer import timer
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Identity,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from contracts.errors import NotFailed, NotificationNotFound, ParkedMessageNotFound
from contracts.events import NotificationCreated, OrderCreated, OrderStatusUpdated
from contracts.schemas import NotificationQuery, ReadMark, load, load_id
from extensions.database import Database
from extensions.events import Hints, event_handler
from extensions.inbox import AnswerMixin
from extensions.mailer import Mailer, MailPostponed, MailRefused, MailServerAway
from extensions.parking import ParkingLot
from extensions.payloads import from_payload, timestamp, to_payload
from extensions.polling import Bell, poll
from extensions.rpc import rpc
from extensions.settings import required
from extensions.telemetry import LogContext

logger = logging.getLogger(__name__)

SEND_SECONDS = 5
RETRY_SEND_SECONDS = 3
LONGEST_AWAY_PAUSE_SECONDS = 30
GIVE_UP_AFTER = timedelta(hours=24)
MAX_ATTEMPTS = 5
FIRST_POSTPONED_PAUSE_SECONDS = 30

EVENT_CLASSES = {event_class.name: event_class for event_class in (OrderCreated, OrderStatusUpdated)}
EVENT_TYPES = {OrderCreated.name: "order_confirmation", OrderStatusUpdated.name: "order_status_update"}


class Base(DeclarativeBase):
    pass


class Answer(AnswerMixin, Base):
    pass


class Notification(Base):
    """pending → sent or failed; failed → sent by a retry.

    event_id is the inbox: an event is stored once. sequence: its place among its order's mails.
    attempts: answers of the mail server about this mail. tries: all tries, also those nobody answered.
    """

    __tablename__ = "notifications"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    event_id: Mapped[UUID] = mapped_column(unique=True)
    event_name: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict] = mapped_column(JSONB)
    order_id: Mapped[int] = mapped_column(BigInteger)
    sequence: Mapped[int] = mapped_column(Integer)
    user_id: Mapped[int] = mapped_column(BigInteger)
    recipient_email: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    message: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, server_default="pending")
    error_message: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    next_try_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    read_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (
        CheckConstraint("status IN ('pending', 'sent', 'failed')", name="ck_notifications_status"),
        UniqueConstraint("order_id", "sequence", name="uq_notifications_order_id_sequence"),
        Index("ix_notifications_user_id_id", "user_id", "id"),
        Index("ix_notifications_pending", "next_try_at", postgresql_where=text("status = 'pending'")),
    )

    def accepted(self):
        self.status, self.error_message = "sent", None
        self.attempts += 1
        self.tries += 1

    def refused(self, reason):
        self.status, self.error_message = "failed", reason
        self.attempts += 1
        self.tries += 1

    def postponed(self, reason):
        """The server may take this mail later: wait longer each time, and give up with the last attempt."""
        self.error_message = reason
        self.attempts += 1
        self.tries += 1
        if self.attempts >= MAX_ATTEMPTS:
            self.status = "failed"
        self._wait(FIRST_POSTPONED_PAUSE_SECONDS * 4 ** (self.attempts - 1))

    def unanswered(self, reason, now):
        """Nobody spoke about this mail: that is no attempt, but a day of it is enough."""
        self.error_message = reason
        self.tries += 1
        if now - self.created_at > GIVE_UP_AFTER:
            self.status = "failed"
        self._wait(min(2**self.tries, LONGEST_AWAY_PAUSE_SECONDS))

    def _wait(self, seconds):
        self.next_try_at = func.now() + timedelta(seconds=seconds)

    @classmethod
    def due(cls):
        """Those to send now, oldest first: of each order the next in sequence alone.

        After a day a mail goes without the one before it, which was parked or never came.
        """
        other = aliased(cls)
        of_same_order = select(other.id).where(other.order_id == cls.order_id)
        earlier_one_waits = of_same_order.where(other.sequence < cls.sequence, other.status == "pending").exists()
        one_before_came = of_same_order.where(other.sequence == cls.sequence - 1).exists()
        in_turn = or_(cls.sequence == 1, one_before_came, cls.created_at < func.now() - GIVE_UP_AFTER)
        due = select(cls).where(cls.status == "pending", cls.next_try_at <= func.now(), ~earlier_one_waits, in_turn)
        return due.order_by(cls.id)


def notification_view(notification):
    return {
        "id": notification.id,
        "type": "email",
        "event_type": EVENT_TYPES[notification.event_name],
        "recipient_email": notification.recipient_email,
        "subject": notification.subject,
        "message": notification.message,
        "order_id": notification.order_id,
        "user_id": notification.user_id,
        "status": notification.status,
        "error_message": notification.error_message,
        "attempts": notification.attempts,
        "read_at": notification.read_at and timestamp(notification.read_at),
        "created_at": timestamp(notification.created_at),
    }


class Letters(DependencyProvider):
    """Renders events to mails with the templates of `templates/email`, a folder for each event's name."""

    def setup(self):
        config = self.container.config
        self._shop_url = required(config, "FRONTEND_URL", "where links in mails lead.").rstrip("/")
        if not self._shop_url.startswith(("http://", "https://")):
            raise SystemExit(f"FRONTEND_URL must be an http or https URL, not {self._shop_url!r}.")
        self._sender = required(config, "MAIL_FROM", "the mails' sender, like Forage <shop@forage.example>.")
        self._domain = parseaddr(self._sender)[1].partition("@")[2]
        if not self._domain:
            raise SystemExit(f"MAIL_FROM must be an address, like Forage <shop@forage.example>, not {self._sender!r}.")
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

    def compose(self, event, recipient):
        """An EmailMessage with a text and an HTML part."""
        mail = EmailMessage()
        mail["From"], mail["To"] = self._sender, recipient
        mail["Subject"] = self._render(event, "subject.txt").strip()
        mail["Date"] = format_datetime(event.timestamp)
        mail["Message-ID"] = f"<{event.event_id}@{self._domain}>"
        mail["X-Forage-Event"] = event.name
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(self._render(event, "body.txt"))
        mail.add_alternative(self._render(event, "body.html"), subtype="html")
        return mail

    def _render(self, event, part):
        return self._templates.get_template(f"{_folder(event)}/{part}").render(
            event=event, order_url=f"{self._shop_url}/orders/{event.order_id}", shop_url=self._shop_url
        )


def _folder(event):
    return event.name.replace(".", "_")


class Notifications:
    name = "notifications"

    db = Database(answers=Answer)
    hints = Hints()
    bell = Bell()
    letters = Letters()
    mailer = Mailer()
    parking = ParkingLot()
    log_context = LogContext()

    @event_handler(OrderCreated)
    def confirm_order(self, event):
        self._store(event)

    @event_handler(OrderStatusUpdated)
    def tell_status(self, event):
        self._store(event)

    def _store(self, event):
        subject, message = self.letters.words(event)
        with self.db.transaction() as session:
            notification = session.scalar(
                insert(Notification)
                .values(
                    event_id=event.event_id,
                    event_name=event.name,
                    payload=to_payload(event),
                    order_id=event.order_id,
                    sequence=event.sequence,
                    user_id=event.user_id,
                    recipient_email=event.user_email,
                    subject=subject,
                    message=message,
                )
                .on_conflict_do_nothing(index_elements=["event_id"])
                .returning(Notification)
            )
            if notification is None:
                return
            self.bell.ring_after_commit(session)
            push = NotificationCreated(
                id=notification.id,
                user_id=event.user_id,
                event_type=EVENT_TYPES[event.name],
                subject=subject,
                message=message,
                order_id=event.order_id,
            )
            self.hints.after_commit(session, push)

    @poll(interval_seconds=1, workers=2)
    def deliver_next(self):
        """Send the next mail that is due. True while there may be more to send."""
        with self.db.transaction() as session:
            notification = session.scalar(Notification.due().limit(1).with_for_update(skip_locked=True))
            if notification is None:
                return False
            # Others will hardly fare better at a server that is away.
            return self._send(session, notification, SEND_SECONDS)

    def _send(self, session, notification, timeout_seconds):
        """Try to send and note what came of it; the row is locked by the caller. False if the server is away."""
        try:
            event = from_payload(EVENT_CLASSES[notification.event_name], notification.payload)
            self.mailer.send(self.letters.compose(event, notification.recipient_email), timeout_seconds)
        except MailServerAway as error:
            logger.warning("notification %d waits: %s", notification.id, error)
            notification.unanswered(str(error), now=session.scalar(select(func.now())))
            return False
        except MailPostponed as error:
            logger.warning("notification %d was postponed: %s", notification.id, error)
            notification.postponed(str(error))
        except MailRefused as error:
            logger.error("notification %d was refused: %s", notification.id, error)
            notification.refused(str(error))
        except Exception as error:
            # The mail itself is broken. It must not hold up the others: it waits as failed for a retry.
            logger.exception("notification %d is no mail that can be sent", notification.id)
            notification.refused(f"The mail could not be made: {error}")
        else:
            logger.info("notification %d was sent", notification.id)
            notification.accepted()
        return True

    @rpc
    def retry_notification(self, notification_id, user_id=None):
        """Try a failed mail once more, now, and return the notification after that: sent, or failed again.

        user_id: whose it must be, None for anybody's. Raises NotificationNotFound, NotFailed.
        """
        # What the mail server took must be noted, deadline or not.
        with self.db.transaction(past_deadline=True) as session:
            return Answer.once(session, self.db.call_id, lambda: self._retry(session, notification_id, user_id))

    def _retry(self, session, notification_id, user_id):
        notification = self._find(session, notification_id, user_id, lock=True)
        if notification.status != "failed":
            raise NotFailed(notification.id, notification.status)
        self._send(session, notification, RETRY_SEND_SECONDS)
        if notification.status != "sent":
            notification.status = "failed"
        return notification_view(notification)

    @rpc
    def list_notifications(self, user_id=None, **query):
        """{notifications, total}, newest first. user_id: whose, None for everybody's.

        query: as contracts.schemas.NotificationQuery. Raises InvalidInput.
        """
        query = load(NotificationQuery(), query)
        conditions = []
        if user_id is not None:
            conditions.append(Notification.user_id == load_id(user_id, "user_id"))
        if query["recipient"] is not None:
            conditions.append(Notification.recipient_email == query["recipient"].lower())
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
        page = page.limit(query["page_size"]).offset((query["page"] - 1) * query["page_size"])
        with self.db.transaction() as session:
            total = session.scalar(select(func.count()).select_from(Notification).where(*conditions))
            notifications = [notification_view(notification) for notification in session.scalars(page)]
        return {"notifications": notifications, "total": total}

    @rpc
    def get_notification(self, notification_id, user_id=None):
        """user_id: whose it must be, None for anybody's. Raises NotificationNotFound."""
        with self.db.transaction() as session:
            return notification_view(self._find(session, notification_id, user_id))

    @rpc
    def mark_read(self, notification_id, user_id, read=True):
        """Mark the customer's own notification read or unread. Raises NotificationNotFound."""
        read = load(ReadMark(), {"read": read})["read"]
        with self.db.transaction() as session:
            notification = self._find(session, notification_id, user_id, lock=True)
            if read != (notification.read_at is not None):
                notification.read_at = func.now() if read else None
            session.flush()
            return notification_view(notification)

    def _find(self, session, notification_id, user_id, lock=False):
        notification = session.get(Notification, load_id(notification_id, "notification_id"), with_for_update=lock)
        if notification is None or user_id not in (None, notification.user_id):
            raise NotificationNotFound(notification_id)
        return notification

    @rpc
    def list_parked(self, limit=50):
        """{messages: [{message_id, queue, reason, attempts, parked_at, body}], total}, oldest first."""
        return self.parking.list(limit)

    @rpc
    def replay_parked(self, message_id):
        """Hand the message to its handler once more. Raises ParkedMessageNotFound."""
        if not self.parking.replay(message_id):
            raise ParkedMessageNotFound(message_id)

    @rpc
    def discard_parked(self, message_id):
        """Drop the message for good. Raises ParkedMessageNotFound."""
        if not self.parking.discard(message_id):
            raise ParkedMessageNotFound(message_id)

    @rpc
    def health(self):
        self.db.check()
        return {"status": "up"}

    @timer(interval=3600)
    def forget_answers(self):
        with self.db.transaction() as session:
            Answer.forget_old(session)
