import logging
import re

import pytest
from nameko.standalone.events import get_event_exchange

from contracts.notifications import NotificationCreated, NotificationNotFound
from contracts.users import InvalidToken, MailNotNeeded
from nameko_reliable.testing.waiting import wait_for
from services.notifications import Notifications
from services.users import Users
from tests.factories import (
    an_account,
    order_created,
    user_password_reset_requested,
    user_registered,
    user_verification_requested,
)
from tests.shop import refusal_of, running_shop


@pytest.fixture(scope="module")
def shop(brokers, databases, smtp_server):
    with running_shop(brokers, databases, smtp_server, Users, Notifications) as shop:
        yield shop


@pytest.fixture
def account(shop, smtp):
    """A registered customer, whose first mail has been sent."""
    return registered(shop, smtp)


def registered(shop, smtp, **fields):
    user = shop.rpc.users.register(**an_account(**fields))
    wait_for(lambda: smtp.messages(to=user["email"]))
    shop_has_sent(shop, user, "user.registered")
    for path in smtp.folder.glob("*.eml"):
        path.unlink()
    return {"user_id": user["id"], "email": user["email"]}


def shop_has_sent(shop, user, event_name):
    sent = "SELECT 1 FROM notifications WHERE user_id = %s AND event_name = %s AND status = 'sent'"
    wait_for(lambda: shop.sql("notifications", sent, user["id"], event_name))


def find(shop, event):
    row = "SELECT id, status, attempts, tries, error_message FROM notifications WHERE event_id = %s"
    rows = shop.sql("notifications", row, event.event_id)
    return dict(zip(("id", "status", "attempts", "tries", "error_message"), rows[0], strict=True)) if rows else None


def wait_until(shop, event, **fields):
    return wait_for(lambda: (row := find(shop, event)) and fields.items() <= row.items() and row)


def make_due(shop, event):
    """End the pause before the mail's next try."""
    shop.sql("notifications", "UPDATE notifications SET next_try_at = now() WHERE event_id = %s", event.event_id)


def only_mail(smtp, event):
    [mail] = wait_for(lambda: smtp.messages(to=event.email))
    return mail


def text_of(mail, kind="plain"):
    return mail.get_body((kind,)).get_content()


def token_of(mail):
    return re.search(r"#token=(\S+)", text_of(mail)).group(1)


def everything_in(shop, service):
    """The whole content of the service's database, as text."""
    tables = shop.sql(service, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    return "\n".join(str(shop.sql(service, f"SELECT t::text FROM {table} t")) for (table,) in tables)


def users_hanging(shop):
    """users gets no answer from its database within the block."""
    return shop.transaction("users", "LOCK TABLE users IN ACCESS EXCLUSIVE MODE")


# Mails


def test_a_registration_sends_a_mail_that_asks_to_confirm_the_address(shop, smtp):
    user = shop.rpc.users.register(**an_account())

    [mail] = wait_for(lambda: smtp.messages(to=user["email"]))
    assert (mail["To"], mail["From"]) == (user["email"], "Forage <shop@forage.example>")
    assert mail["X-Forage-Event"] == "user.registered"
    assert re.fullmatch(r"<[0-9a-f-]{36}@forage\.example>", mail["Message-ID"])
    for kind in ("plain", "html"):
        assert f"http://localhost:8080/verify-email#token={token_of(mail)}" in text_of(mail, kind)
        assert "24 hours" in text_of(mail, kind)
    assert shop.rpc.users.verify_email(token=token_of(mail)) is None


def test_a_second_request_sends_another_link(shop, smtp, account):
    shop.rpc.users.request_verification(user_id=account["user_id"])

    [mail] = wait_for(lambda: smtp.messages(to=account["email"]))
    assert mail["X-Forage-Event"] == "user.verification_requested"
    assert "http://localhost:8080/verify-email#token=" in text_of(mail)
    assert shop.rpc.users.verify_email(token=token_of(mail)) is None


def test_a_password_reset_sends_a_link_to_choose_another_password(shop, smtp, account):
    shop.rpc.users.request_password_reset(email=account["email"])

    [mail] = wait_for(lambda: smtp.messages(to=account["email"]))
    assert mail["X-Forage-Event"] == "user.password_reset_requested"
    for kind in ("plain", "html"):
        assert f"http://localhost:8080/reset-password#token={token_of(mail)}" in text_of(mail, kind)
        assert "30 minutes" in text_of(mail, kind)
    assert shop.rpc.users.reset_password(token=token_of(mail), password="amanita caesarea") is None


def test_a_link_of_one_kind_is_not_valid_for_the_other(shop, smtp, account):
    shop.publish(user_verification_requested(**account))
    [mail] = wait_for(lambda: smtp.messages(to=account["email"]))

    with pytest.raises(InvalidToken):
        shop.rpc.users.reset_password(token=token_of(mail), password="amanita caesarea")


def test_an_event_that_is_delivered_twice_is_mailed_once(shop, smtp, account):
    event, later = user_password_reset_requested(**account), user_password_reset_requested(**account)
    shop.publish(event)
    wait_until(shop, event, status="sent")

    shop.publish(event)
    shop.publish(later)

    wait_until(shop, later, status="sent")
    assert [mail["Message-ID"] for mail in smtp.messages(to=account["email"])] == [
        f"<{sent.event_id}@forage.example>" for sent in (event, later)
    ]


def test_several_mails_about_one_account_do_not_wait_for_each_other(shop, smtp, account):
    refused, fine = user_verification_requested(**account), user_password_reset_requested(**account)
    smtp.reject(account["email"], "450 Later")
    shop.publish(refused)
    wait_until(shop, refused, attempts=1)
    smtp.accept_all()

    shop.publish(fine)

    wait_until(shop, fine, status="sent")
    assert find(shop, refused)["status"] == "pending"


# Mails that are not needed


def unknown_account(shop, account):
    return user_password_reset_requested()


def disabled_account(shop, account):
    shop.rpc.users.update_user(user_id=account["user_id"], is_active=False)
    return user_password_reset_requested(**account)


def another_address(shop, account):
    return user_password_reset_requested(**account | {"email": f"other-{account['email']}"})


def an_address_that_is_proven(shop, account):
    shop.sql("users", "UPDATE users SET email_verified_at = now() WHERE id = %s", account["user_id"])
    return user_registered(**account)


@pytest.mark.parametrize(
    "given", (unknown_account, disabled_account, another_address, an_address_that_is_proven), ids=lambda f: f.__name__
)
def test_a_mail_that_is_not_needed_is_deleted(shop, smtp, account, given):
    event = given(shop, account)
    with users_hanging(shop):
        shop.publish(event)
        wait_until(shop, event, tries=1)

    make_due(shop, event)

    wait_for(lambda: find(shop, event) is None)
    assert smtp.messages(to=event.email) == []


def test_a_mail_that_is_no_longer_needed_cannot_be_retried(shop, smtp, failed):
    smtp.accept_all()
    notification_id = find(shop, failed)["id"]
    shop.rpc.users.update_user(user_id=failed.user_id, is_active=False)

    answers = shop.call_twice("notifications", "retry_notification", notification_id=notification_id)

    assert [type(answer) for answer in answers] == [MailNotNeeded, MailNotNeeded]
    assert find(shop, failed) is None
    assert smtp.messages(to=failed.email) == []


# users unreachable


def test_while_users_is_unreachable_account_mails_wait_and_order_mails_are_sent(own_shop, smtp):
    own_shop.run(Notifications)
    users = own_shop.run(Users)
    account = registered(own_shop, smtp)
    users.stop()
    waiting = [user_password_reset_requested(**account) for _ in range(5)]
    for event in waiting:
        own_shop.publish(event)
    row = wait_until(own_shop, waiting[0], tries=1)
    assert (row["status"], row["attempts"]) == ("pending", 0)
    assert "users" in row["error_message"]

    own_shop.publish(order := order_created())

    wait_until(own_shop, order, status="sent")
    assert [find(own_shop, event)["status"] for event in waiting] == ["pending"] * 5
    own_shop.run(Users)
    for event in waiting:
        make_due(own_shop, event)
        wait_until(own_shop, event, status="sent", attempts=1, error_message=None)
    assert len(smtp.messages(to=account["email"])) == 5


def test_order_mails_do_not_wait_for_account_mails_when_users_is_slow(shop, smtp, account):
    waiting = [user_password_reset_requested(**account) for _ in range(10)]
    with users_hanging(shop):
        for event in waiting:
            shop.publish(event)
        wait_until(shop, waiting[-1], status="pending")

        shop.publish(order := order_created())

        wait_until(shop, order, status="sent")
        assert find(shop, waiting[-1])["tries"] == 0
    for event in waiting:
        make_due(shop, event)
        wait_until(shop, event, status="sent")


# Retries


@pytest.fixture
def failed(shop, smtp, account):
    """The event of an account mail that the server refused."""
    event = user_verification_requested(**account)
    smtp.reject(event.email, "550 No such user")
    shop.publish(event)
    wait_until(shop, event, status="failed", attempts=1)
    return event


def test_a_retry_by_an_admin_sends_a_valid_token(shop, smtp, failed):
    smtp.accept_all()

    notification = shop.rpc.notifications.retry_notification(notification_id=find(shop, failed)["id"])

    assert (notification["status"], notification["attempts"]) == ("sent", 2)
    assert shop.rpc.users.verify_email(token=token_of(only_mail(smtp, failed))) is None


def test_a_retry_while_users_is_unreachable_fails(shop, smtp, failed):
    smtp.accept_all()

    with users_hanging(shop):
        notification = shop.rpc.notifications.retry_notification(notification_id=find(shop, failed)["id"])

    assert (notification["status"], notification["attempts"]) == ("failed", 1)
    assert "users" in notification["error_message"]
    assert smtp.messages(to=failed.email) == []


# Visibility


def test_customers_cannot_see_account_mails(shop, smtp, failed):
    call = {"notification_id": find(shop, failed)["id"], "user_id": failed.user_id}
    notifications = shop.rpc.notifications

    refusals = [
        refusal_of(method.call_async(**call))
        for method in (notifications.get_notification, notifications.mark_read, notifications.retry_notification)
    ]

    assert [type(refusal) for refusal in refusals] == [NotificationNotFound] * 3
    assert notifications.list_notifications(user_id=failed.user_id) == {"notifications": [], "total": 0}
    assert find(shop, failed)["status"] == "failed"


def test_customers_list_the_mails_of_their_orders(shop, smtp, account, failed):
    smtp.accept_all()
    shop.publish(order := order_created(user_id=account["user_id"], user_email=account["email"]))
    wait_until(shop, order, status="sent")

    page = shop.rpc.notifications.list_notifications(user_id=account["user_id"])

    assert [notification["order_id"] for notification in page["notifications"]] == [order.order_id]


def test_admins_list_and_find_account_mails(shop, smtp, failed):
    notifications = shop.rpc.notifications

    page = notifications.list_notifications(recipient=failed.email, status="failed")

    [notification] = page["notifications"]
    assert notification == notifications.get_notification(notification_id=notification["id"])
    assert notification == {
        "id": find(shop, failed)["id"],
        "type": "email",
        "event_type": "email_verification",
        "recipient_email": failed.email,
        "subject": "Confirm your address: your new link",
        "message": notification["message"],
        "order_id": None,
        "user_id": failed.user_id,
        "status": "failed",
        "error_message": "the mail server said 550 No such user",
        "attempts": 1,
        "read_at": None,
        "created_at": notification["created_at"],
    }


def test_admins_see_the_event_type_of_a_password_mail(shop, smtp, account):
    shop.publish(event := user_password_reset_requested(**account))
    wait_until(shop, event, status="sent")

    notification = shop.rpc.notifications.get_notification(notification_id=find(shop, event)["id"])

    assert notification["event_type"] == "password_reset"


def test_account_mails_are_not_pushed(shop, smtp, account, published_events):
    shop.publish(event := user_password_reset_requested(**account))
    wait_until(shop, event, status="sent")

    shop.publish(order := order_created(user_id=account["user_id"]))

    published_events.wait_for(NotificationCreated, where=lambda push: push.order_id == order.order_id)
    pushes = published_events.all(NotificationCreated, where=lambda push: push.user_id == account["user_id"])
    assert [push.event_type for push in pushes] == ["order_confirmation"]


# Secrecy of the token


def test_the_token_is_only_in_the_mail(own_shop, smtp, caplog):
    caplog.set_level(logging.DEBUG)
    for source in ("users", "notifications"):
        exchange = get_event_exchange(source, own_shop.config)
        own_shop.broker.declare("spy", exchange=exchange, routing_key="#", durable=True)
    own_shop.run(Users)
    own_shop.run(Notifications)
    own_shop.rpc.users.register(**(account := an_account()))
    # Mails of earlier tests may still be sent.
    [mail] = wait_for(lambda: smtp.messages(to=account["email"]))
    tokens = [token_of(mail)]
    user_id = own_shop.sql("users", "SELECT id FROM users")[0][0]
    own_shop.publish(failed := user_verification_requested(user_id=user_id, email=mail["To"]))
    wait_until(own_shop, failed, status="sent")
    own_shop.sql("notifications", "UPDATE notifications SET status = 'failed'")

    retried = own_shop.rpc.notifications.retry_notification(notification_id=find(own_shop, failed)["id"])

    assert retried["status"] == "sent"
    tokens += [token_of(another) for another in smtp.messages(to=account["email"])[1:]]
    assert len(set(tokens)) == 3
    durable_queues = [name for name in own_shop.broker.queues() if not name.startswith("rpc")]
    messages = [message for name in durable_queues for message in own_shop.broker.peek(name)]
    places = {
        "notifications_db": everything_in(own_shop, "notifications"),
        "users_db": everything_in(own_shop, "users"),
        "queues": "\n".join(f"{message.body} {message.headers}" for message in messages),
        "logs": "\n".join(str(vars(record)) for record in caplog.records),
    }
    assert [place for place, content in places.items() if any(token in content for token in tokens)] == []
    for place in ("notifications_db", "users_db", "queues"):
        assert mail["To"] in places[place]
    assert f"notification {retried['id']} was sent" in caplog.messages


def test_a_refusal_that_quotes_the_link_does_not_reveal_the_token(shop, smtp, account, caplog):
    caplog.set_level(logging.DEBUG)
    smtp.reject_quoting_links()

    shop.publish(event := user_password_reset_requested(**account))

    reason = wait_until(shop, event, status="failed")["error_message"]
    assert "it links to http://localhost:8080/reset-password#token=…" in reason
    assert "token=…" in caplog.text
    assert not re.search(r"token=\w", reason + caplog.text)
