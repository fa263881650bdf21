"""No mail is lost or sent twice if a process dies, hangs or answers unexpectedly, at any step.

The mail server is one that stops at each step. Leases and pauses are shortened: their constants are changed in the
process that is tested.
"""

import signal
from collections import Counter
from dataclasses import replace

import pytest

from contracts.notifications import NotFailed
from nameko_reliable.testing.waiting import wait_for
from services import notifications, notifications_mail
from services.notifications import Notifications
from tests.factories import order_created, order_status_updated
from tests.infrastructure.scripted_smtp import HANG_UP, Hold

QUICK = {"LEASE_SECONDS": 5, "RENEW_SECONDS": 0.3, "SLOW_SECONDS": 0.2}
MINUTES = 60
QUEUE = "evt-orders-order.created--notifications.confirm_order"
REFUSE_RENEWALS = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
    CREATE TRIGGER refuse_renewals BEFORE UPDATE ON notifications FOR EACH ROW
    WHEN (OLD.leased_until IS NOT NULL AND NEW.leased_until IS NOT NULL AND NEW.dot_at IS NULL)
    EXECUTE FUNCTION refuse()
"""


@pytest.fixture
def run_notifications(own_shop, scripted_smtp, monkeypatch):
    """A replica in this process, whose mails go to `scripted_smtp`."""
    for name, value in QUICK.items():
        monkeypatch.setattr(notifications_mail, name, value)

    def run(**settings):
        return own_shop.run(Notifications, SMTP_PORT=str(scripted_smtp.port), **settings)

    return run


@pytest.fixture
def start_notifications(own_shop, processes, scripted_smtp):
    """A `nameko run`, whose mails go to `scripted_smtp`."""

    def start():
        constants = {"services.notifications_mail": QUICK}
        process = processes.start("services.notifications", constants=constants, SMTP_PORT=str(scripted_smtp.port))
        wait_for(lambda: own_shop.broker.consumers(QUEUE), seconds=30)
        return process

    return start


def published(shop, *events):
    for event in events:
        shop.publish(event)
    return events[0] if len(events) == 1 else events


def row(shop, event):
    names = ("id", "status", "attempts", "tries", "error_message", "leased_until", "dot_at")
    rows = shop.sql(
        "notifications", f"SELECT {', '.join(names)} FROM notifications WHERE event_id = %s", event.event_id
    )
    return dict(zip(names, rows[0], strict=True)) if rows else {}


def wait_until(shop, event, seconds=30, **fields):
    wait_for(lambda: fields.items() <= row(shop, event).items(), seconds)
    return row(shop, event)


def pause_seconds(shop, event):
    pause = "SELECT extract(epoch FROM next_try_at - now()) FROM notifications WHERE event_id = %s"
    return shop.sql("notifications", pause, event.event_id)[0][0]


def make_due(shop, event):
    shop.sql("notifications", "UPDATE notifications SET next_try_at = now() WHERE event_id = %s", event.event_id)


def postponed(shop, smtp, *events):
    """Publish the events. Their mails then wait for the second try."""
    for event in events:
        smtp.on("RCPT", "450 Later", to=event.user_email)
    published(shop, *events)
    for event in events:
        wait_until(shop, event, attempts=1)


def make_all_due(shop):
    """Make all waiting mails due, so that one claim gets them."""
    shop.sql("notifications", "UPDATE notifications SET next_try_at = created_at WHERE status = 'pending'")


def times(smtp, event):
    """The number of times that the server got the whole mail."""
    return Counter(mail["To"] for mail in smtp.received)[event.user_email]


# The server


def test_a_server_that_answers_late_gets_the_mail_once(own_shop, run_notifications, scripted_smtp):
    run_notifications(), run_notifications()
    event = order_created()
    scripted_smtp.always(".", hold := Hold(), to=event.user_email)
    published(own_shop, event)
    wait_for(lambda: hold.reached)

    # Longer than the lease, which must be renewed.
    wait_for(lambda: own_shop.sql("notifications", "SELECT 1 FROM notifications WHERE dot_at < now() - interval '4 s'"))
    assert row(own_shop, event)["status"] == "pending"
    hold.release()

    wait_until(own_shop, event, status="sent", attempts=1, dot_at=None, leased_until=None)
    assert times(scripted_smtp, event) == 1


def test_a_server_that_greets_late_gets_the_mail(own_shop, run_notifications, scripted_smtp):
    run_notifications()
    scripted_smtp.always("greeting", hold := Hold())
    event = published(own_shop, order_created())
    wait_for(lambda: hold.reached)
    renewed = "SELECT 1 FROM notifications WHERE leased_until > created_at + interval '4 s'"
    wait_for(lambda: own_shop.sql("notifications", renewed))

    hold.release()

    wait_until(own_shop, event, status="sent", attempts=1, tries=1)
    assert times(scripted_smtp, event) == 1


@pytest.mark.parametrize(
    ("step", "answer"),
    [("RCPT", HANG_UP), ("DATA", "421 On the way out"), (".", "421 On the way out"), (".", HANG_UP)],
    ids=str,
)
def test_a_server_that_aborts_one_mail_gets_the_others(own_shop, run_notifications, scripted_smtp, step, answer):
    broken, *others = (order_created() for _ in range(4))
    scripted_smtp.on(step, answer, to=broken.user_email)
    run_notifications()

    published(own_shop, broken, *others)

    for event in others:
        wait_until(own_shop, event, status="sent", attempts=1)

    if (step, answer) == (".", HANG_UP):
        wait_until(own_shop, broken, status="uncertain", attempts=0)
        assert 14 * MINUTES < pause_seconds(own_shop, broken) <= 15 * MINUTES
    else:
        wait_until(own_shop, broken, status="pending", attempts=1)
        assert 50 < pause_seconds(own_shop, broken) <= 60
    make_due(own_shop, broken)
    wait_until(own_shop, broken, status="sent", error_message=None)
    assert [mail["To"] for mail in scripted_smtp.accepted].count(broken.user_email) == 1


@pytest.mark.parametrize("step", ["greeting", "MAIL"])
def test_421_to_the_first_mail_of_a_connection_counts_no_attempt(own_shop, run_notifications, scripted_smtp, step):
    scripted_smtp.on(step, "421 Too busy")
    run_notifications()

    event = published(own_shop, order_created())

    waiting = wait_until(own_shop, event, tries=1)
    assert (waiting["status"], waiting["attempts"]) == ("pending", 0)
    assert "421 Too busy" in waiting["error_message"]
    assert pause_seconds(own_shop, event) <= 30
    make_due(own_shop, event)
    wait_until(own_shop, event, status="sent", attempts=1)


def test_a_kept_connection_closed_by_the_server_counts_no_try(own_shop, run_notifications, scripted_smtp):
    run_notifications()
    wait_until(own_shop, published(own_shop, order_created()), status="sent")
    scripted_smtp.hang_up()

    event = published(own_shop, order_created())

    wait_until(own_shop, event, status="sent", tries=1, attempts=1)
    assert len(scripted_smtp.commands) == 2


def test_a_lease_is_renewed_after_an_error_of_its_renewal(own_shop, run_notifications, scripted_smtp, caplog):
    run_notifications()
    event = order_created()
    scripted_smtp.always("DATA", hold := Hold(), to=event.user_email)
    own_shop.sql("notifications", REFUSE_RENEWALS)
    published(own_shop, event)
    wait_for(lambda: "could not change when mails are due, or their leases" in caplog.text)

    own_shop.sql("notifications", "DROP TRIGGER refuse_renewals ON notifications")

    renewed = "SELECT 1 FROM notifications WHERE leased_until > created_at + interval '6 s'"
    wait_for(lambda: own_shop.sql("notifications", renewed))
    hold.release()
    wait_until(own_shop, event, status="sent", attempts=1, tries=1)


def test_up_to_twenty_slow_mails_delay_no_others(own_shop, run_notifications, scripted_smtp, monkeypatch):
    # No lease ends here, even where its renewal is late.
    monkeypatch.setattr(notifications_mail, "LEASE_SECONDS", 60)
    slow, fast = [order_created() for _ in range(20)], [order_created() for _ in range(5)]
    holds = [Hold() for _ in slow]
    for event, hold in zip(slow, holds, strict=True):
        scripted_smtp.always(".", hold, to=event.user_email)
    run_notifications()
    published(own_shop, *slow)
    wait_for(lambda: all(hold.reached for hold in holds), seconds=20)
    published(own_shop, *fast)
    assert scripted_smtp.open == 20

    holds[7].release()

    for event in (slow[7], *fast):
        wait_until(own_shop, event, status="sent")
    assert [row(own_shop, event)["status"] for event in slow].count("pending") == 19
    for hold in holds:
        hold.release()
    for event in slow:
        wait_until(own_shop, event, status="sent", attempts=1)
    assert max(Counter(mail["To"] for mail in scripted_smtp.received).values()) == 1


def test_a_backlog_is_sent_by_several_senders(own_shop, run_notifications, scripted_smtp, monkeypatch):
    # No sender is slow, and no lease ends.
    monkeypatch.setattr(notifications_mail, "SLOW_SECONDS", 60)
    monkeypatch.setattr(notifications_mail, "LEASE_SECONDS", 60)
    first, *others = events = [order_created() for _ in range(25)]
    run_notifications()
    postponed(own_shop, scripted_smtp, *events)
    scripted_smtp.always("RCPT", hold := Hold(), to=first.user_email)

    make_all_due(own_shop)

    # The others of the first claim wait.
    for event in events[20:]:
        wait_until(own_shop, event, status="sent", tries=2)
    assert row(own_shop, others[0])["status"] == "pending"
    hold.release()
    for event in events:
        wait_until(own_shop, event, status="sent", tries=2)


def test_mails_claimed_with_a_slow_one_are_sent_by_other_senders(own_shop, run_notifications, scripted_smtp):
    slow, *others = events = [order_created() for _ in range(6)]
    scripted_smtp.always("DATA", hold := Hold(), to=slow.user_email)
    run_notifications()
    postponed(own_shop, scripted_smtp, *events)

    make_all_due(own_shop)

    for event in others:
        wait_until(own_shop, event, status="sent", tries=2)
    assert row(own_shop, slow)["status"] == "pending"
    hold.release()
    wait_until(own_shop, slow, status="sent", tries=2)


def test_a_mail_that_a_claim_is_postponing_is_sent_once_the_one_before_it_is(
    own_shop, run_notifications, scripted_smtp, monkeypatch
):
    # One sender, which is not slow.
    monkeypatch.setattr(notifications_mail, "SLOW_SECONDS", 60)
    monkeypatch.setattr(notifications_mail, "LEASE_SECONDS", 60)
    created = order_created()
    later = order_status_updated(created, "confirmed")
    scripted_smtp.on(".", hold := Hold(), to=created.user_email)
    run_notifications()
    published(own_shop, created)
    wait_for(lambda: hold.reached)
    published(own_shop, later)
    wait_until(own_shop, later, status="pending")

    # As another replica's claim that began before the first mail was sent.
    with own_shop.transaction("notifications") as claim:
        claim.execute(
            "UPDATE notifications SET next_try_at = now() + interval '15 min' WHERE event_id = %s", [later.event_id]
        )
        hold.release()
        own_shop.wait_until_locked("notifications")

    wait_until(own_shop, later, status="sent", attempts=1)


def test_an_uncertain_mail_delays_no_later_one_and_fails_after_two_more_tries(
    own_shop, run_notifications, scripted_smtp
):
    created = order_created()
    later = replace(order_status_updated(created, "confirmed"), user_email="later@forage.example")
    scripted_smtp.always(".", HANG_UP, to=created.user_email)
    scripted_smtp.on("RCPT", "450 Later", to=later.user_email)
    run_notifications()

    published(own_shop, created)
    wait_until(own_shop, created, status="uncertain")
    published(own_shop, later)
    wait_until(own_shop, later, attempts=1)

    for tries, minutes in ((1, 15), (2, 60)):
        wait_until(own_shop, created, status="uncertain", tries=tries, dot_at=None)
        assert (minutes - 1) * MINUTES < pause_seconds(own_shop, created) <= minutes * MINUTES
        assert own_shop.rpc.notifications.list_notifications(status="uncertain")["total"] == 1
        make_due(own_shop, created)
    failed = wait_until(own_shop, created, status="failed", attempts=0, tries=3)
    assert "may have it" in failed["error_message"]
    assert times(scripted_smtp, created) == 3
    # The later mail waits only because of its own refusal.
    assert row(own_shop, later)["tries"] == 1
    assert pause_seconds(own_shop, later) > MINUTES / 2


# Retries


def test_a_slow_retry_is_pending_and_a_second_one_is_refused(own_shop, run_notifications, scripted_smtp, monkeypatch):
    monkeypatch.setattr(notifications, "RETRY_SECONDS", 0.5)
    event = order_created()
    scripted_smtp.on("RCPT", "550 No such user", to=event.user_email)
    scripted_smtp.on("DATA", hold := Hold(), to=event.user_email)
    run_notifications()
    published(own_shop, event)
    retry = {"notification_id": wait_until(own_shop, event, status="failed")["id"]}

    answer = own_shop.rpc.notifications.retry_notification(**retry)

    assert (answer["status"], answer["attempts"]) == ("pending", 1)
    with pytest.raises(NotFailed) as refusal:
        own_shop.rpc.notifications.retry_notification(**retry)
    assert refusal.value.status == "pending"
    hold.release()
    wait_until(own_shop, event, status="sent", attempts=2)
    assert times(scripted_smtp, event) == 1


def test_an_uncertain_mail_can_be_retried(own_shop, run_notifications, scripted_smtp):
    event = order_created()
    scripted_smtp.on(".", HANG_UP, to=event.user_email)
    run_notifications()
    published(own_shop, event)
    notification_id = wait_until(own_shop, event, status="uncertain")["id"]

    answer = own_shop.rpc.notifications.retry_notification(notification_id=notification_id)

    assert (answer["status"], answer["error_message"]) == ("sent", None)
    assert times(scripted_smtp, event) == 2


# The sender


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_the_loss_of_a_sender_at_any_step_loses_and_doubles_no_mail(
    own_shop, start_notifications, run_notifications, scripted_smtp, caplog, end
):
    names = ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "before the dot", "dot", "noted")
    events = {name: order_created() for name in names}
    holds = {name: Hold() for name in names}
    for step in ("greeting", "EHLO", "MAIL"):
        scripted_smtp.on(step, holds[step])
    scripted_smtp.on("RCPT", holds["RCPT"], to=events["RCPT"].user_email)
    scripted_smtp.on("DATA", holds["DATA"], to=events["DATA"].user_email)
    scripted_smtp.on("DATA", holds["before the dot"], to=events["before the dot"].user_email)
    scripted_smtp.on(".", holds["dot"], to=events["dot"].user_email)
    process = start_notifications()
    for name in names:
        published(own_shop, events[name])
        # One by one, because the first steps of a connection belong to no mail.
        wait_for(lambda name=name: name == "noted" or holds[name].reached)
    wait_until(own_shop, events["noted"], status="sent")
    locked = f"SELECT FROM notifications WHERE event_id = '{events['before the dot'].event_id}' FOR UPDATE"
    with own_shop.transaction("notifications", locked):
        holds["before the dot"].release()
        own_shop.wait_until_locked("notifications")

        process.send(end)
        if end == signal.SIGKILL:
            # PostgreSQL gives up the statement of a client that is gone.
            own_shop.wait_until_locked("notifications", waiters=0)

    run_notifications()
    # PostgreSQL carries out the statement of a frozen sender: the mail has its dot_at, and may have been sent.
    lost = names[:5] if end == signal.SIGSTOP else names[:6]
    for name in lost:
        wait_until(own_shop, events[name], status="sent", attempts=1)
    wait_until(own_shop, events["dot"], status="uncertain", attempts=0)
    assert 14 * MINUTES < pause_seconds(own_shop, events["dot"]) <= 15 * MINUTES
    if end == signal.SIGSTOP:
        # The server's answer is recorded although another sender has claimed the mail.
        scripted_smtp.on("DATA", again := Hold(), to=events["dot"].user_email)
        make_due(own_shop, events["dot"])
        wait_for(lambda: again.reached)
        process.send(signal.SIGCONT)
        for hold in holds.values():
            hold.release()
        for name in names:
            wait_until(own_shop, events[name], status="sent", attempts=1)
        again.release()
        # The mail before the dot was left by the process, and this one by the replica here.
        for log in (process.output, lambda: caplog.text):
            wait_for(lambda log=log: "another sender may have claimed it" in log())
    assert [times(scripted_smtp, events[name]) for name in names] == [1] * len(names)


def test_a_stopping_sender_releases_unsent_mails(own_shop, start_notifications, scripted_smtp):
    before, ended, *others = (order_created() for _ in range(6))
    scripted_smtp.on("DATA", Hold(), to=before.user_email)
    scripted_smtp.on(".", hold := Hold(), to=ended.user_email)
    process = start_notifications()
    postponed(own_shop, scripted_smtp, before, *others, ended)
    make_all_due(own_shop)
    wait_for(lambda: hold.reached)

    process.send(signal.SIGTERM)

    wait_for(lambda: own_shop.broker.consumers(QUEUE) == 0)
    hold.release()
    assert process.stop() == 0
    wait_until(own_shop, ended, status="sent")
    for event in (before, *others):
        assert row(own_shop, event)["leased_until"] is None
        assert row(own_shop, event)["status"] == "sent" or pause_seconds(own_shop, event) <= 0
    assert times(scripted_smtp, before) == 0


# The database


def test_the_loss_of_the_database_at_any_step_loses_and_doubles_no_mail(
    own_shop, run_notifications, scripted_smtp, database_proxy
):
    proxy = database_proxy("notifications")
    before, ended, later = order_created(), order_created(), order_created()
    scripted_smtp.on("DATA", hold_before := Hold(), to=before.user_email)
    scripted_smtp.on(".", hold_ended := Hold(), to=ended.user_email)
    run_notifications(DB_URIS={"notifications": proxy.uri})
    published(own_shop, before, ended)
    wait_for(lambda: hold_before.reached and hold_ended.reached)

    proxy.go_away()
    own_shop.publish(later)
    hold_before.release()
    hold_ended.release()
    wait_for(lambda: len(scripted_smtp.accepted) == 1)
    assert row(own_shop, ended)["status"] == "pending"
    proxy.come_back()

    for event in (before, ended, later):
        wait_until(own_shop, event, status="sent", attempts=1)
        assert times(scripted_smtp, event) == 1
