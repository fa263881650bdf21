import json
from uuid import uuid4

import pytest

from contracts.notifications import NotFailed, NotificationCreated, NotificationNotFound
from contracts.types import InvalidInput
from nameko_reliable.telemetry.logs import formatter
from nameko_reliable.testing.waiting import wait_for
from services.notifications import Notifications
from tests.factories import a_customer, order_created, order_status_updated
from tests.shop import refusal_of


@pytest.fixture
def notifications(shop, smtp):
    return shop.rpc.notifications


def of(shop, event):
    """The notification of an event, once it is stored."""
    return wait_for(lambda: find(shop, event))


def find(shop, event):
    rows = shop.sql(
        "notifications",
        "SELECT id, status, attempts, tries, error_message FROM notifications WHERE event_id = %s",
        event.event_id,
    )
    return dict(zip(("id", "status", "attempts", "tries", "error_message"), rows[0], strict=True)) if rows else None


def wait_until(shop, event, **fields):
    wait_for(lambda: find(shop, event) is not None)
    wait_for(lambda: fields.items() <= find(shop, event).items())
    return find(shop, event)


def pause_seconds(shop, event):
    """The seconds until the next try."""
    pause = "SELECT extract(epoch FROM next_try_at - now()) FROM notifications WHERE event_id = %s"
    [(seconds,)] = shop.sql("notifications", pause, event.event_id)
    return seconds


def make_due(shop, event):
    """End the pause before the mail's next try."""
    shop.sql("notifications", "UPDATE notifications SET next_try_at = now() WHERE event_id = %s", event.event_id)


def process_due_mails(shop):
    """Return once the senders have processed all due mails."""
    shop.publish(event := order_created())
    wait_until(shop, event, status="sent")


# Mails


def test_an_order_is_confirmed_by_mail(shop, notifications, smtp):
    event = order_created()

    shop.publish(event)

    [mail] = wait_for(lambda: smtp.messages(to=event.user_email))
    assert mail["To"] == event.user_email
    assert mail["From"] == "Forage <shop@forage.example>"
    assert mail["X-Forage-Event"] == "order.created"
    assert mail["Message-ID"] == f"<{event.event_id}@forage.example>"
    assert mail["Date"].datetime == event.timestamp
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    for kind in ("plain", "html"):
        content = mail.get_body((kind,)).get_content()
        assert "Chanterelles" in content and "€29.00" in content
        assert f"http://localhost:8080/orders/{event.order_id}" in content
    wait_until(shop, event, status="sent", attempts=1)


def test_a_status_change_is_mailed(shop, notifications, smtp):
    created = order_created()
    event = order_status_updated(created, "shipped")

    shop.publish(created)
    shop.publish(event)

    _, mail = wait_for(
        lambda: smtp.messages(to=event.user_email)[:2] if len(smtp.messages(to=event.user_email)) == 2 else None
    )
    assert mail["X-Forage-Event"] == "order.status.updated"
    assert "shipped" in mail.get_body(("plain",)).get_content().lower()


def test_an_event_that_is_delivered_twice_is_mailed_once(shop, notifications, smtp):
    event = order_created()
    shop.publish(event)
    wait_until(shop, event, status="sent")

    shop.publish(event)
    shop.publish(later := order_status_updated(event, "confirmed"))

    wait_until(shop, later, status="sent")
    assert [mail["X-Forage-Event"] for mail in smtp.messages(to=event.user_email)] == [
        "order.created",
        "order.status.updated",
    ]


def test_a_status_change_that_overtakes_its_order_is_mailed_after_it(shop, notifications, smtp):
    created = order_created()
    confirmed = order_status_updated(created, "confirmed", sequence=2)
    shipped = order_status_updated(created, "shipped", sequence=3)
    for event in (shipped, confirmed):
        shop.publish(event)
        of(shop, event)
    process_due_mails(shop)
    assert smtp.messages(to=created.user_email) == []

    shop.publish(created)

    wait_until(shop, shipped, status="sent")
    assert [mail["Message-ID"] for mail in smtp.messages(to=created.user_email)] == [
        f"<{event.event_id}@forage.example>" for event in (created, confirmed, shipped)
    ]


def test_a_mail_that_waited_for_long_is_sent_right_after_the_one_before_it(shop, notifications, smtp):
    created = order_created()
    confirmed = order_status_updated(created, "confirmed")
    shop.publish(confirmed)
    of(shop, confirmed)
    stored(shop, confirmed, hours_ago=20)
    make_due(shop, confirmed)
    # The longer it waits, the less often it is read.
    wait_for(lambda: pause_seconds(shop, confirmed) > 600)

    shop.publish(created)

    wait_until(shop, confirmed, status="sent")
    assert [mail["Message-ID"] for mail in smtp.messages(to=created.user_email)] == [
        f"<{event.event_id}@forage.example>" for event in (created, confirmed)
    ]


def test_a_mail_waits_for_the_one_before_it_until_that_has_failed(shop, notifications, smtp):
    created = order_created()
    confirmed = order_status_updated(created, "confirmed")
    smtp.reject(created.user_email, "450 Later")
    shop.publish(created)
    wait_until(shop, created, attempts=1)
    shop.publish(confirmed)
    of(shop, confirmed)
    process_due_mails(shop)
    assert find(shop, confirmed)["tries"] == 0

    smtp.reject(created.user_email, "550 Never")
    make_due(shop, created)

    wait_until(shop, created, status="failed")
    wait_until(shop, confirmed, status="failed")
    assert smtp.messages(to=created.user_email) == []


def test_after_a_day_a_mail_is_sent_without_the_missing_one_before_it(shop, notifications, smtp):
    confirmed = order_status_updated(order_created(), "confirmed")
    shop.publish(confirmed)
    of(shop, confirmed)

    shop.sql(
        "notifications",
        "UPDATE notifications SET created_at = now() - interval '25 hours' WHERE event_id = %s",
        confirmed.event_id,
    )

    wait_until(shop, confirmed, status="sent")


def test_even_after_a_day_a_mail_waits_for_the_pending_one_before_it(shop, notifications, smtp):
    created = order_created()
    confirmed = order_status_updated(created, "confirmed")
    smtp.reject(created.user_email, "450 Later")
    shop.publish(created)
    wait_until(shop, created, attempts=1)
    shop.publish(confirmed)
    of(shop, confirmed)
    smtp.accept_all()

    shop.sql(
        "notifications",
        "UPDATE notifications SET created_at = now() - interval '25 hours' WHERE order_id = %s",
        created.order_id,
    )
    process_due_mails(shop)
    assert find(shop, confirmed)["status"] == "pending"
    make_due(shop, created)

    wait_until(shop, confirmed, status="sent")
    assert [mail["X-Forage-Event"] for mail in smtp.messages(to=created.user_email)] == [
        "order.created",
        "order.status.updated",
    ]


@pytest.mark.parametrize("answer", ("550 No such user", "554 Spam", "500 What"))
def test_a_permanently_refused_mail_fails_at_once(shop, notifications, smtp, answer):
    event = order_created()
    smtp.reject(event.user_email, answer)

    shop.publish(event)

    failed = wait_until(shop, event, status="failed")
    assert failed["attempts"] == 1
    assert answer in failed["error_message"]


def test_a_temporarily_refused_mail_is_retried_after_a_minute_to_an_hour(shop, notifications, smtp):
    event = order_created()
    smtp.reject(event.user_email, "451 Greylisted")
    shop.publish(event)
    wait_until(shop, event, attempts=1, status="pending")
    pauses = [round(pause_seconds(shop, event), -1)]

    later = "UPDATE notifications SET attempts = %s, next_try_at = now() WHERE event_id = %s"
    for attempt in (2, 7):
        shop.sql("notifications", later, attempt - 1, event.event_id)
        wait_until(shop, event, attempts=attempt, status="pending")
        pauses.append(round(pause_seconds(shop, event), -1))

    assert pauses == [60, 120, 3600]
    smtp.accept_all()
    make_due(shop, event)
    wait_until(shop, event, status="sent", error_message=None)
    assert len(smtp.messages(to=event.user_email)) == 1


def stored(shop, event, hours_ago):
    """Store the event as if it had come `hours_ago`."""
    shop.sql(
        "notifications",
        "UPDATE notifications SET created_at = now() - %s * interval '1 hour' WHERE event_id = %s",
        hours_ago,
        event.event_id,
    )


def test_a_mail_that_is_temporarily_refused_for_a_day_fails(shop, notifications, smtp):
    event = order_created()
    smtp.reject(event.user_email, "451 Greylisted")
    shop.publish(event)
    wait_until(shop, event, attempts=1)

    stored(shop, event, hours_ago=23)
    make_due(shop, event)
    wait_until(shop, event, attempts=2, status="pending")
    stored(shop, event, hours_ago=25)
    make_due(shop, event)

    assert "451 Greylisted" in wait_until(shop, event, attempts=3, status="failed")["error_message"]


def test_the_day_of_a_mail_counts_from_its_first_try(shop, notifications, smtp):
    confirmed = order_status_updated(order_created(), "confirmed")
    smtp.reject(confirmed.user_email, "451 Greylisted")
    shop.publish(confirmed)
    of(shop, confirmed)

    stored(shop, confirmed, hours_ago=25)
    wait_until(shop, confirmed, attempts=1, status="pending")
    stored(shop, confirmed, hours_ago=48)
    make_due(shop, confirmed)

    wait_until(shop, confirmed, attempts=2, status="pending")
    stored(shop, confirmed, hours_ago=50)
    make_due(shop, confirmed)
    wait_until(shop, confirmed, attempts=3, status="failed")


def test_a_refused_mail_does_not_delay_the_others(shop, notifications, smtp):
    refused, fine = [order_created() for _ in range(3)], order_created()
    for event in refused:
        smtp.reject(event.user_email, "450 Later")
        shop.publish(event)

    shop.publish(fine)

    wait_until(shop, fine, status="sent")


def test_an_unreachable_server_counts_no_attempt_and_gets_the_mail_later(shop, notifications, smtp):
    event = order_created()
    smtp.stop()
    shop.publish(event)
    wait_until(shop, event, tries=1)
    make_due(shop, event)
    waiting = wait_until(shop, event, tries=2)
    assert (waiting["status"], waiting["attempts"]) == ("pending", 0)
    assert pause_seconds(shop, event) <= 30

    smtp.start()
    make_due(shop, event)

    wait_until(shop, event, status="sent", attempts=1)
    assert len(smtp.messages(to=event.user_email)) == 1


def test_a_mail_fails_after_a_day_without_the_server(shop, notifications, smtp):
    event = order_created()
    smtp.stop()
    shop.publish(event)
    wait_until(shop, event, tries=1)

    shop.sql(
        "notifications",
        "UPDATE notifications SET created_at = now() - interval '25 hours', next_try_at = now() WHERE event_id = %s",
        event.event_id,
    )

    assert wait_until(shop, event, status="failed")["attempts"] == 0


def test_a_mail_that_cannot_be_made_fails_and_delays_no_other(shop, notifications, smtp):
    broken, fine = order_created(), order_created()
    smtp.stop()
    shop.publish(broken)
    wait_until(shop, broken, tries=1)
    shop.sql("notifications", "UPDATE notifications SET payload = '{}' WHERE event_id = %s", broken.event_id)
    smtp.start()
    make_due(shop, broken)

    shop.publish(fine)

    wait_until(shop, fine, status="sent")
    assert "could not be made" in wait_until(shop, broken, status="failed")["error_message"]


def test_replicas_never_send_a_mail_twice(own_shop, smtp):
    for _ in range(3):
        own_shop.run(Notifications)
    orders = [order_created() for _ in range(12)]
    steps = [order_status_updated(order, "confirmed") for order in orders]

    for event in (*steps, *orders, *orders):
        own_shop.publish(event)

    wait_for(
        lambda: own_shop.sql("notifications", "SELECT count(*) FROM notifications WHERE status = 'sent'") == [(24,)]
    )
    sent = [mail["Message-ID"] for order in orders for mail in smtp.messages(to=order.user_email)]
    assert sorted(sent) == sorted(f"<{event.event_id}@forage.example>" for event in (*orders, *steps))
    for order, step in zip(orders, steps, strict=True):
        assert sent.index(f"<{order.event_id}@forage.example>") < sent.index(f"<{step.event_id}@forage.example>")


# Retries


@pytest.fixture
def failed(shop, smtp):
    """The event of a mail that the server refused."""
    event = order_created()
    smtp.reject(event.user_email, "550 No such user")
    shop.publish(event)
    wait_until(shop, event, status="failed")
    return event


def test_a_retry_sends_a_failed_mail(shop, notifications, smtp, failed):
    smtp.accept_all()

    notification = notifications.retry_notification(notification_id=find(shop, failed)["id"])

    assert (notification["status"], notification["attempts"], notification["error_message"]) == ("sent", 2, None)
    assert len(smtp.messages(to=failed.user_email)) == 1


def test_the_log_lines_of_a_retry_name_the_event(shop, notifications, smtp, failed, caplog, monkeypatch):
    monkeypatch.setattr(caplog.handler, "formatter", formatter("json", "INFO"))
    smtp.accept_all()

    notifications.retry_notification(notification_id=find(shop, failed)["id"])

    # Mails of earlier tests may be sent meanwhile.
    lines = [line for line in map(json.loads, caplog.text.splitlines()) if line["message"].endswith("was sent")]
    assert [line["event_id"] for line in lines].count(str(failed.event_id)) == 1


@pytest.mark.parametrize("answer", ("550 Still not", "450 Later"))
def test_a_retry_that_is_refused_fails(shop, notifications, smtp, failed, answer):
    smtp.reject(failed.user_email, answer)

    notification = notifications.retry_notification(notification_id=find(shop, failed)["id"])

    assert (notification["status"], notification["attempts"]) == ("failed", 2)
    assert answer in notification["error_message"]


def test_a_retry_while_the_server_is_unreachable_fails(shop, notifications, smtp, failed):
    smtp.stop()

    notification = notifications.retry_notification(notification_id=find(shop, failed)["id"])

    assert (notification["status"], notification["attempts"]) == ("failed", 1)


def test_only_a_failed_mail_can_be_retried(shop, notifications, smtp):
    event = order_created()
    shop.publish(event)
    wait_until(shop, event, status="sent")

    with pytest.raises(NotFailed) as refusal:
        notifications.retry_notification(notification_id=find(shop, event)["id"])

    assert refusal.value.status == "sent"
    assert len(smtp.messages(to=event.user_email)) == 1


def test_concurrent_retries_send_a_mail_once(shop, notifications, smtp, failed):
    smtp.accept_all()
    notification_id = find(shop, failed)["id"]

    calls = [notifications.retry_notification.call_async(notification_id=notification_id) for _ in range(5)]

    refusals = [refusal_of(call) for call in calls]
    assert refusals.count(None) == 1
    assert sum(isinstance(refusal, NotFailed) for refusal in refusals) == 4
    assert len(smtp.messages(to=failed.user_email)) == 1


def test_a_redelivered_retry_sends_once_with_the_same_answer(shop, notifications, smtp, failed):
    smtp.accept_all()

    first, second = shop.call_twice("notifications", "retry_notification", notification_id=find(shop, failed)["id"])

    assert first == second
    assert first["status"] == "sent"
    assert len(smtp.messages(to=failed.user_email)) == 1


def test_only_the_owner_may_retry(shop, notifications, smtp, failed):
    with pytest.raises(NotificationNotFound):
        notifications.retry_notification(notification_id=find(shop, failed)["id"], user_id=failed.user_id + 1)

    assert notifications.retry_notification(notification_id=find(shop, failed)["id"], user_id=failed.user_id)


# Lists


@pytest.fixture
def mailed_events(shop, smtp):
    """Three events of one customer, their mails sent."""
    created = order_created()
    events = [created, order_status_updated(created, "confirmed", 2), order_status_updated(created, "shipped", 3)]
    for event in events:
        shop.publish(event)
    for event in events:
        wait_until(shop, event, status="sent")
    return events


def ids(page):
    return [notification["id"] for notification in page["notifications"]]


def test_a_notification_has_its_event_its_texts_and_its_order(shop, notifications, mailed_events):
    created = mailed_events[0]

    notification = notifications.get_notification(notification_id=find(shop, created)["id"])

    assert notification == {
        "id": notification["id"],
        "type": "email",
        "event_type": "order_confirmation",
        "recipient_email": created.user_email,
        "subject": notification["subject"],
        "message": notification["message"],
        "order_id": created.order_id,
        "user_id": created.user_id,
        "status": "sent",
        "error_message": None,
        "attempts": 1,
        "read_at": None,
        "created_at": notification["created_at"],
    }
    assert str(created.order_id) in notification["subject"]
    assert notification["message"]


def test_customers_list_their_own_notifications_newest_first(shop, notifications, mailed_events):
    shop.publish(order_created())
    stored = sorted((find(shop, event)["id"] for event in mailed_events), reverse=True)

    pages = [
        notifications.list_notifications(user_id=mailed_events[0].user_id, page=page, page_size=2) for page in (1, 2, 3)
    ]

    assert [ids(page) for page in pages] == [stored[:2], stored[2:], []]
    assert [page["total"] for page in pages] == [3, 3, 3]


def test_notifications_after_another_are_listed_oldest_first(shop, notifications, mailed_events):
    first, *later = sorted(find(shop, event)["id"] for event in mailed_events)

    page = notifications.list_notifications(user_id=mailed_events[0].user_id, after_id=first)

    assert ids(page) == later


def test_notifications_are_found_by_their_properties(shop, notifications, mailed_events):
    created = mailed_events[0]
    notifications.mark_read(notification_id=find(shop, created)["id"], user_id=created.user_id)

    def found(**query):
        return notifications.list_notifications(**query)["total"]

    assert found(recipient=created.user_email.upper()) == 3
    assert found(recipient=created.user_email[1:]) == found(recipient="%") == 0
    assert found(order_id=created.order_id) == 3
    assert found(order_id=created.order_id, status="sent") == 3
    assert found(order_id=created.order_id, status="failed") == 0
    assert found(order_id=created.order_id, unread=True) == 2
    assert found(order_id=created.order_id, unread=False) == 1
    assert found(order_id=created.order_id, user_id=a_customer()["user_id"]) == 0


@pytest.mark.parametrize("query", ({"page": 0}, {"page_size": 101}, {"status": "lost"}, {"colour": "red"}))
def test_a_query_out_of_bounds_is_refused(notifications, query):
    with pytest.raises(InvalidInput) as refusal:
        notifications.list_notifications(**query)

    assert set(refusal.value.errors) == set(query)


def test_a_page_beyond_the_last_notification_is_empty(notifications):
    assert notifications.list_notifications(page=10**12, page_size=100)["notifications"] == []


def test_a_notification_can_be_marked_read_and_unread(shop, notifications, mailed_events):
    call = {"notification_id": find(shop, mailed_events[0])["id"], "user_id": mailed_events[0].user_id}

    read = notifications.mark_read(**call)
    again = notifications.mark_read(**call)
    unread = notifications.mark_read(**call, read=False)

    assert read["read_at"] is not None
    assert again == read
    assert unread["read_at"] is None


def test_a_redelivered_mark_gets_the_same_answer(shop, notifications, mailed_events):
    first, second = shop.call_twice(
        "notifications",
        "mark_read",
        notification_id=find(shop, mailed_events[0])["id"],
        user_id=mailed_events[0].user_id,
    )

    assert first == second
    assert first["read_at"]


def test_the_notification_of_another_customer_is_not_found(shop, notifications, mailed_events):
    call = {"notification_id": find(shop, mailed_events[0])["id"], "user_id": a_customer()["user_id"]}

    for refused in (
        notifications.get_notification.call_async(**call),
        notifications.mark_read.call_async(**call),
        notifications.get_notification.call_async(notification_id=2**62),
    ):
        assert isinstance(refusal_of(refused), NotificationNotFound)
    assert notifications.get_notification(notification_id=call["notification_id"])["read_at"] is None


@pytest.mark.parametrize("read", (None, "yes", 2, []))
def test_a_notification_is_marked_only_by_a_boolean(shop, notifications, mailed_events, read):
    with pytest.raises(InvalidInput):
        notifications.mark_read(
            notification_id=find(shop, mailed_events[0])["id"], user_id=mailed_events[0].user_id, read=read
        )


@pytest.mark.parametrize("notification_id", (0, "1", None, 2**63))
def test_an_invalid_id_is_refused(notifications, notification_id):
    with pytest.raises(InvalidInput):
        notifications.get_notification(notification_id=notification_id)


# Pushes


def test_a_notification_is_pushed_even_if_no_mail_can_be_sent(shop, notifications, smtp, wait_for_event):
    event = order_created()
    smtp.stop()

    shop.publish(event)

    push = wait_for_event(NotificationCreated, where=lambda push: push.order_id == event.order_id)
    stored = notifications.get_notification(notification_id=find(shop, event)["id"])
    assert (push.id, push.user_id, push.event_type, push.subject, push.message) == tuple(
        stored[name] for name in ("id", "user_id", "event_type", "subject", "message")
    )


def test_failed_and_pending_mails_are_counted(own_shop, smtp):
    own_shop.run(Notifications)
    # Not due, so it is not sent.
    own_shop.sql(
        "notifications",
        """
        INSERT INTO notifications
            (event_id, event_name, payload, user_id, recipient_email, subject, message, status, next_try_at)
        SELECT gen_random_uuid(), 'order.created', '{}', 1, 'ada@forage.example', '', '', status,
            now() + interval '1 hour'
        FROM unnest(ARRAY['failed', 'failed', 'pending', 'sent', 'uncertain']) AS status
        """,
    )

    mails = own_shop.rpc.notifications.summarize_mails()

    assert mails == {"failed": 2, "pending": 1, "uncertain": 1}


# Operation


def test_a_message_that_fails_is_parked_listed_and_replayed(own_shop, smtp):
    own_shop.run(Notifications)
    queue = "evt-orders-order.created--notifications.confirm_order"
    event = order_created()
    own_shop.broker.publish("not JSON", queue=queue)
    own_shop.broker.publish({"event_id": str(uuid4())}, queue=queue)

    own_shop.publish(event)

    wait_for(lambda: smtp.messages(to=event.user_email))
    parked = wait_for(
        lambda: own_shop.rpc.notifications.list_parked()["total"] == 2 and own_shop.rpc.notifications.list_parked()
    )
    second, first = parked["messages"]
    assert {first["reason"], first["queue"]} == {"not JSON", queue}
    assert "is missing" in second["reason"]
    own_shop.rpc.notifications.replay_parked(message_id=first["message_id"])
    own_shop.rpc.notifications.discard_parked(message_id=second["message_id"])
    [again] = wait_for(lambda: own_shop.rpc.notifications.list_parked()["messages"])
    assert own_shop.rpc.notifications.count_parked() == 1
    assert again["body"] == "not JSON"
    assert again["message_id"] != first["message_id"]


def test_health_answers_up(notifications):
    assert notifications.health() == {"status": "up"}


@pytest.mark.parametrize(
    "setting",
    ({"FRONTEND_URL": "forage.example"}, {"MAIL_FROM": "Forage"}, {"SMTP_PORT": "smtp"}),
)
def test_an_invalid_setting_is_reported_in_a_sentence(own_shop, setting):
    with pytest.raises(SystemExit, match=next(iter(setting))):
        own_shop.run(Notifications, **setting)
