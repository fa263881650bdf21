"""The wire format of notifications: its events, errors, requests and answers."""

from dataclasses import dataclass

from marshmallow import Schema, fields, validate

from contracts.types import MAX_BIGINT, Conflict, Line, NotFound, PageQuery, StrictBoolean, Time, View
from nameko_reliable.messages import Event

NOTIFICATION_STATUSES = ("pending", "sent", "failed", "uncertain")


class NotificationNotFound(NotFound):
    def __init__(self, notification_id: int | str) -> None:
        super().__init__(notification_id)
        self.notification_id = int(notification_id)


class NotFailed(Conflict):
    """Only a notification that has failed or is uncertain can be tried again."""

    def __init__(self, notification_id: int | str, status: str) -> None:
        super().__init__(notification_id, status)
        self.notification_id, self.status = int(notification_id), status


@dataclass(frozen=True, kw_only=True)
class NotificationCreated(Event):
    """sequence: that of the order's event."""

    source = "notifications"
    name = "notification.created"

    id: int
    user_id: int
    event_type: str
    subject: str
    message: str
    order_id: int
    sequence: int


class ReadMark(Schema):
    read = StrictBoolean(required=True)


class NotificationQuery(PageQuery):
    """after_id: list only those with a higher id, oldest first, for a client that reconnects."""

    recipient = Line(load_default=None, allow_none=True, validate=validate.Length(max=254))
    status = fields.String(load_default=None, allow_none=True, validate=validate.OneOf(NOTIFICATION_STATUSES))
    order_id = fields.Integer(load_default=None, allow_none=True, validate=validate.Range(1, MAX_BIGINT))
    unread = fields.Boolean(load_default=None, allow_none=True)
    after_id = fields.Integer(load_default=None, allow_none=True, validate=validate.Range(0, MAX_BIGINT))
    page_size = fields.Integer(validate=validate.Range(1, 100), metadata={"deprecated": True})


class NotificationView(View):
    id = fields.Integer()
    type = fields.String()
    event_type = fields.String(
        metadata={
            "description": "order_confirmation or order_status_update; for admins also email_verification, "
            "password_reset and order_summary, the mail that sums up others of its customer."
        }
    )
    recipient_email = fields.String(metadata={"format": "email"})
    subject = fields.String()
    message = fields.String()
    order_id = fields.Integer(allow_none=True)
    user_id = fields.Integer()
    status = fields.String(validate=validate.OneOf(NOTIFICATION_STATUSES))
    error_message = fields.String(allow_none=True)
    attempts = fields.Integer()
    read_at = Time(allow_none=True)
    created_at = Time()


class NotificationPageView(View):
    notifications = fields.List(fields.Nested(NotificationView))
    total = fields.Integer()


class MailSummaryView(View):
    failed = fields.Integer()
    pending = fields.Integer()
    uncertain = fields.Integer()
