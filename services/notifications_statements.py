"""The statements of notifications: storing an event, the steps of a mail, lists, and counts of unsent mails."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import and_, case, func, literal, not_, or_, select, union_all
from sqlalchemy.orm import Session

from contracts.notifications import NOTIFICATION_STATUSES, NotificationNotFound, NotificationView
from contracts.types import JsonObject, fold_address, load_id
from nameko_reliable.statements import Statement, run
from services.notifications_models import (
    EVENT_CLASSES,
    EVENT_TYPES,
    GIVE_UP_AFTER,
    IS_DUE_ACCOUNT_MAIL,
    IS_DUE_ORDER_MAIL,
    MAX_ORDERS_LISTED,
    SUMMARY_NAME,
    UNPROVEN_MAILS,
    UNPROVEN_WINDOW,
    ClaimedMail,
    Notification,
    OrderSummary,
)
from services.reading import Execute, ViewTable

COUNT_MAILS = union_all(
    # Each status has its own partial index.
    *(
        select(literal(status), func.count()).where(Notification.status == status)
        for status in ("pending", "failed", "uncertain")
    )
)
IS_SUMMARY = and_(Notification.order_id.is_(None), Notification.event_name == SUMMARY_NAME)
# A summary is due UNPROVEN_WINDOW after it was made.
DUE_SINCE = Notification.created_at + case((IS_SUMMARY, UNPROVEN_WINDOW), else_=timedelta(0))
AGE_OF_OLDEST_PENDING = select(func.coalesce(func.extract("epoch", func.now() - func.min(DUE_SINCE)), 0)).where(
    Notification.status == "pending",
    # Without summaries that are not due yet. Order mails that wait for another are not due either, but count.
    or_(not_(IS_SUMMARY), Notification.next_try_at <= func.now(), Notification.tries > 0),
)

IS_TYPE = " ".join(f"WHEN event_name = '{name}' THEN '{EVENT_TYPES[each]}'" for name, each in EVENT_CLASSES.items())
NOTIFICATIONS = ViewTable(
    "notifications",
    NotificationView(),
    type=f"'{Notification.type}'",
    # As Notification.event_type.
    event_type=f"CASE WHEN order_id IS NULL AND event_name = '{SUMMARY_NAME}' THEN '{EVENT_TYPES[OrderSummary]}' "
    f"{IS_TYPE} END",
)
# Not a parameter: without the value PostgreSQL can't use the index of a status.
HAS_STATUS = {status: f"status = '{status}'" for status in NOTIFICATION_STATUSES}


def find_notification(session: Session, notification_id: int, user_id: int | None) -> Notification:
    """The notification, locked. user_id: the owner, None for any. Raises NotificationNotFound."""
    read_notification(partial(run, session), notification_id, user_id)
    notification = session.get(Notification, notification_id, with_for_update=True)
    if notification is None:
        # Deleted meanwhile, since its mail was not needed any more.
        raise NotificationNotFound(notification_id)
    return notification


def read_notification(execute: Execute, notification_id: int, user_id: int | None) -> JsonObject:
    """user_id: the owner, None for any. Raises NotificationNotFound."""
    conditions, parameters = _visible(user_id)
    rest = "WHERE " + " AND ".join(["id = %(id)s::bigint", *conditions])
    found = NOTIFICATIONS.find(execute, rest, id=load_id(notification_id, "notification_id"), **parameters)
    if not found:
        raise NotificationNotFound(notification_id)
    return found[0]


def read_notifications(execute: Execute, user_id: int | None, query: Mapping[str, Any]) -> tuple[int, list[JsonObject]]:
    """(total, the notifications of the page). query: as contracts.notifications.NotificationQuery."""
    conditions, parameters = _visible(user_id)
    if query["recipient"] is not None:
        conditions.append("recipient_email = %(recipient)s::text")
        parameters["recipient"] = fold_address(query["recipient"])
    if query["status"] is not None:
        conditions.append(HAS_STATUS[query["status"]])
    if query["order_id"] is not None:
        conditions.append("order_id = %(order_id)s::bigint")
        parameters["order_id"] = query["order_id"]
    if query["unread"] is not None:
        conditions.append("read_at IS NULL" if query["unread"] else "read_at IS NOT NULL")
    order = "id DESC"
    if query["after_id"] is not None:
        conditions.append("id > %(after_id)s::bigint")
        parameters["after_id"] = query["after_id"]
        order = "id"
    return NOTIFICATIONS.page(execute, conditions, order, query["limit"], query["offset"], **parameters)


def _visible(user_id: int | None) -> tuple[list[str], JsonObject]:
    """Conditions with their parameters: None sees all, customers see their own without account mails and summaries."""
    if user_id is None:
        return [], {}
    return ["user_id = %(user_id)s::bigint", "order_id IS NOT NULL"], {"user_id": load_id(user_id, "user_id")}


def orders_summed_up(session: Session, summary_id: int) -> tuple[Sequence[Notification], int]:
    """The last notification of each order of the summary, newest orders first, and the number of orders.

    At most MAX_ORDERS_LISTED notifications. The address is locked.
    """
    orders = select(Notification.order_id).where(Notification.summary_id == summary_id)
    last = select(Notification).where(Notification.order_id.in_(orders)).distinct(Notification.order_id)
    last = last.order_by(Notification.order_id.desc(), Notification.sequence.desc()).limit(MAX_ORDERS_LISTED)
    total = session.execute(select(func.count()).select_from(orders.distinct().subquery())).scalar_one()
    return session.scalars(last).all(), total


def _interval(duration: timedelta) -> str:
    return f"interval '{duration.total_seconds():.0f} seconds'"


# Storing an event. Both statements lock only the rows that they insert. They return the id of the notification. They
# return no row if the event is stored already, with its event_id, or with another event_id of the same step of its
# order: releases before 0.1.0 gave events other ids.

COLUMNS = """
    event_id, event_name, payload, order_id, sequence, user_id, recipient_email, subject, message, request_id,
    traceparent
"""
VALUES = """
    %(event_id)s::uuid, %(event_name)s::text, %(payload)s::jsonb, %(order_id)s::bigint, %(sequence)s::integer,
    %(user_id)s::bigint, %(recipient_email)s::text, %(subject)s::text, %(message)s::text, %(request_id)s::text,
    %(traceparent)s::text
"""

STORE = Statement(f"INSERT INTO notifications ({COLUMNS}) VALUES ({VALUES}) ON CONFLICT DO NOTHING RETURNING id")

# For an address that was never proven. If the address has reached its limit, the notification joins a summary: the one
# that is not due yet, or else a new one, whose id is taken before it is inserted. The parameters summary_… are those of
# the new one. The advisory lock of the address comes first, as in `lock_address`: one event at a time counts the mails
# and joins a summary. No event joins a due summary: its sender, which may be at work, locks the address before it reads
# the orders.
STORE_FOR_UNPROVEN = Statement(
    f"""
    WITH open_summary AS MATERIALIZED (
        SELECT max(id) AS id FROM notifications
        WHERE recipient_email = %(recipient_email)s::text AND summary_id IS NULL AND order_id IS NULL
            AND event_name = '{SUMMARY_NAME}' AND status = 'pending' AND next_try_at > clock_timestamp()
            AND leased_until IS NULL
    ), order_mails AS MATERIALIZED (
        -- An older pending mail still has to be sent.
        SELECT count(*) AS number FROM notifications
        WHERE recipient_email = %(recipient_email)s::text AND summary_id IS NULL AND order_id IS NOT NULL
            AND (created_at > clock_timestamp() - {_interval(UNPROVEN_WINDOW)} OR status = 'pending')
    ), summary AS MATERIALIZED (
        SELECT open_summary.id IS NULL AS is_new, CASE
            WHEN open_summary.id IS NOT NULL THEN open_summary.id
            WHEN order_mails.number >= {UNPROVEN_MAILS} THEN nextval(pg_get_serial_sequence('notifications', 'id'))
        END AS id
        FROM open_summary, order_mails
    ), stored AS (
        INSERT INTO notifications ({COLUMNS}, summary_id, status, error_message)
        SELECT {VALUES}, summary.id, CASE WHEN summary.id IS NULL THEN 'pending' ELSE 'sent' END,
            'summed up in ' || summary.id
        FROM summary
        ON CONFLICT DO NOTHING RETURNING id
    ), new_summary AS (
        INSERT INTO notifications
            (id, event_id, event_name, payload, user_id, recipient_email, subject, message, request_id, traceparent,
            next_try_at)
        SELECT summary.id, %(summary_event_id)s::uuid, '{SUMMARY_NAME}', %(summary_payload)s::jsonb,
            %(user_id)s::bigint, %(recipient_email)s::text, %(summary_subject)s::text, %(summary_message)s::text,
            %(request_id)s::text, %(traceparent)s::text, now() + {_interval(UNPROVEN_WINDOW)}
        FROM summary, stored WHERE summary.is_new AND summary.id IS NOT NULL
    )
    SELECT id FROM stored
    """,
    lock="hashtext('order mails to ' || %(recipient_email)s::text)",
)


# The steps of a mail. They can't deadlock. Claims never wait, since they skip locked rows. The other statements lock
# one row, or rows that their sender holds, or rows of one order that no sender holds, all in the order of one index.

# Of a ClaimedMail, in the order of its fields.
MAIL_COLUMNS = ", ".join(
    "now() - n.created_at AS age" if field.name == "age" else f"n.{field.name}" for field in fields(ClaimedMail)
)
# The limit of a claim.
CLAIM_SIZE = 20


def _claim(is_due: str, waits: str) -> Statement:
    """Claims due mails, the longest due first, at most `most` of them, with a lease of `seconds`.

    Each row is a ClaimedMail and `waits`. A mail that waits for an earlier one of its order is not claimed. It is due
    again once that one is over, or else after a quarter of its age: not at once, or each claim would read it again.
    Fewer rows than `most` mean that no other mail is due, or that other claims hold the rest. The rows have no order.
    """
    return Statement(f"""
    WITH due AS MATERIALIZED (
        SELECT id, waits FROM (
            SELECT n.id, {waits} AS waits FROM notifications n WHERE {is_due} AND next_try_at <= now()
            -- A literal: with a parameter PostgreSQL would expect a tenth of all due mails, and plan for so many.
            ORDER BY next_try_at LIMIT {CLAIM_SIZE} FOR UPDATE OF n SKIP LOCKED
        ) AS longest_due LIMIT %(most)s::bigint
    )
    UPDATE notifications n SET
        lease = CASE WHEN due.waits THEN n.lease ELSE %(lease)s::uuid END,
        leased_until = CASE WHEN NOT due.waits THEN now() + make_interval(secs => %(seconds)s::float8) END,
        next_try_at = now() + CASE
            WHEN due.waits THEN least(greatest((now() - n.created_at) / 4, interval '1 s'), interval '15 min')
            ELSE make_interval(secs => %(seconds)s::float8)
        END
    FROM due WHERE n.id = due.id
    RETURNING {MAIL_COLUMNS}, due.waits
    """)


# An order's mails go in sequence. After GIVE_UP_AFTER a mail is sent without the one before it, which was parked or
# never came. Scalar subqueries of the order's own mails: for EXISTS, PostgreSQL may hash the whole table.
CLAIM_ORDER_MAILS = _claim(
    IS_DUE_ORDER_MAIL,
    f"""n.sequence > 1 AND (
        (
            SELECT other.id FROM notifications other
            WHERE other.order_id = n.order_id AND other.sequence < n.sequence AND other.status = 'pending' LIMIT 1
        ) IS NOT NULL OR n.created_at >= now() - {_interval(GIVE_UP_AFTER)} AND (
            SELECT other.id FROM notifications other
            WHERE other.order_id = n.order_id AND other.sequence = n.sequence - 1 LIMIT 1
        ) IS NULL
    )""",
)
CLAIM_ACCOUNT_MAILS = _claim(IS_DUE_ACCOUNT_MAIL, "false")

# Renews the lease of a slow try. No row is returned.
RENEW_LEASE = Statement("""
    UPDATE notifications
    SET leased_until = now() + make_interval(secs => %(seconds)s::float8),
        next_try_at = now() + make_interval(secs => %(seconds)s::float8)
    WHERE id = %(id)s::bigint AND lease = %(lease)s::uuid AND leased_until IS NOT NULL
""")

# Right before the final dot. No row: the lease is over, so another sender may have claimed the mail.
RECORD_DOT = Statement("""
    UPDATE notifications SET dot_at = now(), leased_until = now() + make_interval(secs => %(seconds)s::float8)
    WHERE id = %(id)s::bigint AND lease = %(lease)s::uuid AND leased_until > now() RETURNING id
""")

# The outcome of a try. No row: another sender holds the mail by now. The outcome `sent` is recorded under any lease.
# has_later: later mails of the order are pending. A repeat after a lost answer changes nothing more.
RECORD_OUTCOME = Statement("""
    UPDATE notifications n SET
        status = coalesce(%(status)s::text, n.status), error_message = %(error_message)s::text,
        attempts = coalesce(%(attempts)s::integer, n.attempts), tries = %(tries)s::integer,
        doubts = coalesce(%(doubts)s::integer, n.doubts),
        waited = CASE WHEN n.tries = 0 THEN now() - n.created_at ELSE n.waited END,
        next_try_at = coalesce(now() + %(pause)s::interval, n.next_try_at),
        by_hand = false, leased_until = NULL, dot_at = NULL,
        lease = CASE WHEN %(status)s::text = 'sent' THEN NULL ELSE n.lease END
    WHERE n.id = %(id)s::bigint AND (n.lease = %(lease)s::uuid OR %(status)s::text = 'sent')
    RETURNING (
        SELECT later.id FROM notifications later
        WHERE later.order_id = n.order_id AND later.sequence > n.sequence AND later.status = 'pending' LIMIT 1
    ) IS NOT NULL AS has_later
""")

# The later mails of an order, once they need not wait for this one. They may still wait for each other. Also those that
# are due: a claim that still saw this mail as pending may be postponing them. If it commits first, this statement waits
# for it, and makes them due again. If it reaches them second, their next_try_at is after its now(), so it skips them.
# For that, this one begins after the outcome of this mail was committed.
MAKE_LATER_MAILS_DUE = Statement("""
    UPDATE notifications SET next_try_at = now()
    WHERE order_id = %(order_id)s::bigint AND sequence > %(sequence)s::integer AND status = 'pending'
        AND leased_until IS NULL
""")

# Gives up the claim of mails that were not sent. They count as due since they were stored, so they go before younger
# mails.
RELEASE_MAILS = Statement("""
    UPDATE notifications SET leased_until = NULL, dot_at = NULL, next_try_at = created_at
    WHERE id = ANY (%(ids)s::bigint[]) AND lease = %(lease)s::uuid
""")

DELETE_MAIL = Statement("DELETE FROM notifications WHERE id = %(id)s::bigint AND lease = %(lease)s::uuid")

# Mails whose sender was lost after the dot, each a ClaimedMail and `dot_at`. Locked: other replicas skip them, and
# their sender, if it is still there, waits to record its outcome.
LOCK_ORPHANED_MAILS = Statement(f"""
    SELECT {MAIL_COLUMNS}, n.dot_at FROM notifications n
    WHERE n.dot_at IS NOT NULL AND n.leased_until <= now() FOR UPDATE SKIP LOCKED
""")
