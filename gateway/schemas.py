"""Schemas of the HTTP API: query strings and answers. The schemas of request bodies are in contracts/."""

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from marshmallow import INCLUDE, Schema, ValidationError, fields, post_load, pre_load, validate, validates_schema

from contracts import notifications, orders, products, subscribing_services, types, users
from contracts.notifications import MailSummaryView
from contracts.orders import OrderSummaryView
from contracts.products import StockSummaryView
from contracts.types import Time, View

SUBSCRIBERS = subscribing_services()
NULLABLE: dict[str, Any] = {"allow_none": True}


class Moment(fields.Field[str]):
    """An ISO 8601 date or time, in UTC unless it has an offset. Loads to an ISO 8601 time with `Z`.

    after_day: a bare date means the end of that day, not its beginning.
    """

    def __init__(self, *, after_day: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.after_day = after_day

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        try:
            if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
                moment = datetime.combine(date.fromisoformat(value), time(), UTC)
                moment += timedelta(days=1) if self.after_day else timedelta()
            else:
                # An unescaped + arrives as a space.
                moment = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
                moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ValidationError("Not a valid ISO 8601 date or time.") from None
        return moment.isoformat().replace("+00:00", "Z")


def Flag(**kwargs: Any) -> fields.Boolean:
    return fields.Boolean(truthy={"true"}, falsy={"false"}, **kwargs)


class Query(Schema):
    """Empty search terms are ignored."""

    @pre_load
    def drop_empty_terms(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {
            name: value for name, value in data.items() if value or not isinstance(self.fields.get(name), fields.String)
        }

    @post_load
    def clear_blank_terms(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {name: None if value == "" else value for name, value in data.items()}


class ProductQuery(Query, products.ProductQuery):
    is_active = Flag(load_default=True)


class OrderQuery(Query, orders.OrderQuery):
    """from, to: orders created at `from` or later and before `to`. A bare date covers the whole day."""

    all = Flag(load_default=False)
    created_from = Moment(load_default=None, data_key="from")  # type: ignore[assignment]
    created_to = Moment(load_default=None, data_key="to", after_day=True)  # type: ignore[assignment]

    @validates_schema(skip_on_field_errors=False)
    def require_all_for_searches(self, data: dict[str, Any], **kwargs: Any) -> None:
        given = {"q": data.get("q"), "from": data.get("created_from"), "to": data.get("created_to")}
        if not data.get("all") and any(given.values()):
            raise ValidationError({name: ["Only with all=true."] for name, value in given.items() if value})


class NotificationQuery(Query, notifications.NotificationQuery):
    all = Flag(load_default=False)
    unread = Flag(load_default=None)


class UserQuery(Query, users.UserQuery):
    pass


MAX_PARKED_OFFSET = 1000


class ParkedQuery(types.PageQuery):
    """The offset is bounded, as each page loads all newer messages from the services, which list 1,000 at most."""

    offset = fields.Integer(load_default=0, validate=validate.Range(0, MAX_PARKED_OFFSET))

    @validates_schema
    def check_reach(self, data: dict[str, Any], **kwargs: Any) -> None:
        if (data.get("page", 1) - 1) * data["limit"] > MAX_PARKED_OFFSET:
            raise ValidationError(f"Must begin with one of the first {MAX_PARKED_OFFSET} messages.", "page")


class ParkedSelection(types.ParkedSelection):
    service = fields.String(required=True, validate=validate.OneOf(SUBSCRIBERS))


class SignInQuery(Schema):
    """Providers add parameters of their own, which are ignored."""

    code = fields.String(load_default="", validate=validate.Length(max=4000))
    state = fields.String(load_default="", validate=validate.Length(max=1000))


class AcceptedView(View):
    """detail: a sentence that says what happens next."""

    detail = fields.String()


class TokenView(View):
    access_token = fields.String()
    token_type = fields.String(validate=validate.OneOf(["bearer"]))
    expires_in = fields.Integer(metadata={"description": "seconds"})


ParkedCountView = View.from_dict(
    {service: fields.Integer(**NULLABLE) for service in SUBSCRIBERS}, name="ParkedCountView"
)


class SummaryView(View):
    """A section is null when its service is unreachable or too slow."""

    days = fields.Integer()
    orders = fields.Nested(OrderSummaryView, **NULLABLE)
    stock = fields.Nested(StockSummaryView, **NULLABLE)
    mails = fields.Nested(MailSummaryView, **NULLABLE)
    parked = fields.Nested(ParkedCountView)


class ParkedMessageView(View):
    """queue, reason, attempts, parked_at: null for a message that its service did not park."""

    service = fields.String(validate=validate.OneOf(SUBSCRIBERS))
    id = fields.String()
    queue = fields.String(**NULLABLE)
    reason = fields.String(**NULLABLE)
    attempts = fields.Integer(**NULLABLE)
    parked_at = Time(**NULLABLE)
    body = fields.String(metadata={"description": "cut after 2000 characters"})


class ParkedPageView(View):
    """total: the messages of the services that answered, listed or not. away: the services that did not answer."""

    messages = fields.List(fields.Nested(ParkedMessageView))
    total = fields.Integer()
    limit = fields.Integer()
    offset = fields.Integer()
    away = fields.List(fields.String(validate=validate.OneOf(SUBSCRIBERS)))


class ParkedProgressView(View):
    """done: replayed or discarded by this call. kept: examined and still parked. left: not examined yet."""

    done = fields.Integer()
    kept = fields.Integer()
    left = fields.Integer()


class GatewayHealthView(View):
    status = fields.String(validate=validate.OneOf(["up"]))


class ServiceHealthView(View):
    status = fields.String(validate=validate.OneOf(["up", "down"]))
    response_time_ms = fields.Float()


class HealthView(View):
    status = fields.String(validate=validate.OneOf(["healthy", "degraded", "unhealthy"]))
    timestamp = Time()
    gateway = fields.Nested(GatewayHealthView)
    services = fields.Dict(fields.String(), fields.Nested(ServiceHealthView))
    warnings = fields.List(fields.String())


class ProbeView(View):
    status = fields.String(validate=validate.OneOf(["up"]))


class ProblemView(Schema):
    """RFC 9457. `type` is a fixed word to branch on. An error's own fields are further members."""

    class Meta:
        unknown = INCLUDE

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    instance = fields.String(required=True)
    request_id = fields.String(required=True)
    errors = fields.Dict(fields.String(), fields.Raw(), metadata={"description": "messages by field, with 422"})
