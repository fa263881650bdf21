"""Mails are sent through a relay that requires TLS and a login."""

import secrets

import pytest

from nameko_reliable.testing.waiting import wait_for
from services.notifications import Notifications
from tests.factories import order_created
from tests.infrastructure.certificates import Authority
from tests.infrastructure.smtp import Smtp

PASSWORD = secrets.token_hex(16)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def relay_of(tmp_path, authority):
    """`relay_of("starttls")`: a relay on this machine. `settings`: the valid settings for it."""
    relays = []

    def relay_of(tls, name="localhost"):
        certificate, key = authority.issue(name)
        security = {"tls": tls, "certificate": str(certificate), "key": str(key)}
        relay = Smtp(tmp_path, {**security, "user": "forage", "password": PASSWORD})
        relays.append(relay)
        relay.settings = {
            "SMTP_HOST": "localhost",
            "SMTP_PORT": str(relay.port),
            "SMTP_TLS": tls,
            "SMTP_CA": str(authority.certificate),
            "SMTP_USER": "forage",
            "SMTP_PASSWORD": PASSWORD,
        }
        return relay

    yield relay_of
    for relay in relays:
        relay.stop()


def mails(shop):
    return shop.sql("notifications", "SELECT status, attempts, error_message FROM notifications WHERE tries > 0")


def waiting_mail(shop, server, settings):
    """The reason why a mail waits with these settings. The server must not get it."""
    shop.run(Notifications, **settings)
    shop.publish(event := order_created())
    [(status, attempts, reason)] = wait_for(lambda: mails(shop))
    assert (status, attempts) == ("pending", 0)
    assert server.messages(to=event.user_email) == []
    return reason


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_relay_that_requires_tls_and_a_login_gets_the_mails(own_shop, relay_of, tls):
    relay = relay_of(tls)
    own_shop.run(Notifications, **relay.settings)

    own_shop.publish(event := order_created())

    wait_for(lambda: relay.messages(to=event.user_email))
    wait_for(lambda: mails(own_shop) == [("sent", 1, None)])


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_relay_with_a_certificate_for_another_name_gets_no_mail_and_no_password(own_shop, relay_of, tls, caplog):
    relay = relay_of(tls, name="mail.elsewhere.example")

    reason = waiting_mail(own_shop, relay, relay.settings)

    assert f"localhost:{relay.port} is unreachable" in reason
    assert "Hostname mismatch" in reason
    assert reason in caplog.text


def test_a_relay_with_an_unknown_authority_gets_no_mail(own_shop, relay_of):
    relay = relay_of("starttls")

    assert "certificate verify failed" in waiting_mail(own_shop, relay, {**relay.settings, "SMTP_CA": ""})


def test_a_relay_without_tls_gets_no_mail(own_shop, relay_of, smtp):
    settings = {**relay_of("starttls").settings, "SMTP_PORT": str(smtp.port)}

    assert "STARTTLS extension not supported" in waiting_mail(own_shop, smtp, settings)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_wrong_password_is_reported_without_it_and_the_mail_waits(own_shop, relay_of, tls, caplog):
    relay, wrong = relay_of(tls), secrets.token_hex(16)

    reason = waiting_mail(own_shop, relay, {**relay.settings, "SMTP_PASSWORD": wrong})

    assert "it refuses SMTP_USER with SMTP_PASSWORD, it said 535 5.7.8 Not with …" in reason
    assert reason in caplog.text
    assert wrong not in caplog.text
