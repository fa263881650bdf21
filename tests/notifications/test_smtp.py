"""services.notifications_smtp: the effects of the server's answers on the mail and the connection."""

from email.headerregistry import Address

import pytest

from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.waiting import wait_for
from services import notifications_smtp
from services.notifications_mime import write_mail
from services.notifications_smtp import Mailer, MailPostponed, MailRefused, MailServerUnreachable, MailUncertain
from tests.infrastructure.scripted_smtp import HANG_UP, Hold

pytestmark = pytest.mark.server


class Office:
    name = "office"

    mailer = Mailer()


@pytest.fixture
def mailer_of(container_factory, config):
    def mailer_of(server, **settings):
        container = container_factory(Office, {**config, "SMTP_PORT": server.port, **settings})
        [mailer] = container.dependencies
        mailer.setup()
        return mailer

    return mailer_of


@pytest.fixture
def connection(mailer_of, scripted_smtp):
    with mailer_of(scripted_smtp).connection() as connection:
        yield connection


def mail_to(recipient="ada@forage.example", text="It is done."):
    sender = Address("Bakery", addr_spec="bakery@forage.example")
    return write_mail(sender, recipient, "Käse 🍄", text, "<p>Käse</p>", {})


def send(connection, mail):
    connection.begin(mail)
    connection.finish()


def test_a_mail_arrives_unchanged(mailer_of, smtp):
    with mailer_of(smtp).connection() as connection:
        send(connection, mail_to(text=".\n..\n.hidden\nKäse\n"))

    [mail] = smtp.messages(to="ada@forage.example")
    assert mail["Subject"] == "Käse 🍄"
    assert mail.get_body(("plain",)).get_content().splitlines() == [".", "..", ".hidden", "Käse"]


def test_a_mail_without_its_final_dot_is_not_delivered(mailer_of, smtp):
    with mailer_of(smtp).connection() as connection:
        connection.begin(mail_to())

    with mailer_of(smtp).connection() as connection:
        send(connection, mail_to("bo@forage.example"))

    assert smtp.messages(to="ada@forage.example") == []
    assert len(smtp.messages(to="bo@forage.example")) == 1


@pytest.mark.parametrize(
    ("step", "answer", "meaning"),
    [
        ("greeting", "554 No service", MailServerUnreachable),
        ("greeting", "421 Too busy", MailServerUnreachable),
        ("greeting", HANG_UP, MailServerUnreachable),
        ("EHLO", HANG_UP, MailServerUnreachable),
        ("EHLO", "421 Too busy", MailServerUnreachable),
        ("MAIL", "421 Too busy", MailServerUnreachable),
        ("MAIL", "451 Local error", MailPostponed),
        ("MAIL", "550 Sender refused", MailRefused),
        ("MAIL", HANG_UP, MailPostponed),
        ("RCPT", "450 Mailbox busy", MailPostponed),
        ("RCPT", "550 No such user", MailRefused),
        ("RCPT", "421 On the way out", MailPostponed),
        ("RCPT", HANG_UP, MailPostponed),
        ("DATA", "451 Later", MailPostponed),
        ("DATA", "250 What?", MailPostponed),
        ("DATA", "What?", MailPostponed),
        ("DATA", HANG_UP, MailPostponed),
        (".", "452 No room", MailPostponed),
        (".", "421 On the way out", MailPostponed),
        (".", "554 Spam", MailRefused),
        (".", HANG_UP, MailUncertain),
        (".", "What?", MailUncertain),
        (".", "354 Go on", MailUncertain),
    ],
    ids=str,
)
def test_each_answer_raises_its_error_and_the_next_mail_is_sent(connection, scripted_smtp, step, answer, meaning):
    scripted_smtp.on(step, answer)
    if step == "EHLO":
        scripted_smtp.on("HELO", answer)

    with pytest.raises(meaning) as refusal:
        send(connection, mail_to())

    if answer is not HANG_UP and answer != "What?":
        assert answer in str(refusal.value) or step == "EHLO"
    send(connection, mail_to("bo@forage.example"))
    assert [mail["To"] for mail in scripted_smtp.accepted] == ["bo@forage.example"]


@pytest.mark.parametrize(
    ("step", "meaning"),
    [
        ("greeting", MailServerUnreachable),
        ("EHLO", MailServerUnreachable),
        ("MAIL", MailPostponed),
        ("RCPT", MailPostponed),
        ("DATA", MailPostponed),
        (".", MailUncertain),
    ],
)
def test_a_missing_answer_raises_its_error(connection, scripted_smtp, monkeypatch, step, meaning):
    monkeypatch.setattr(notifications_smtp, "COMMAND_SECONDS", 0.2)
    monkeypatch.setattr(notifications_smtp, "END_OF_DATA_SECONDS", 0.2)
    scripted_smtp.on(step, Hold())

    with pytest.raises(meaning, match=r"no answer within 0\.2 s"):
        send(connection, mail_to())

    send(connection, mail_to("bo@forage.example"))


def test_the_timeouts_are_those_of_rfc_5321():
    assert (notifications_smtp.COMMAND_SECONDS, notifications_smtp.END_OF_DATA_SECONDS) == (5 * 60, 10 * 60)


def test_a_stopped_server_is_unreachable(mailer_of, scripted_smtp):
    scripted_smtp.stop()

    with pytest.raises(MailServerUnreachable), mailer_of(scripted_smtp).connection() as connection:
        send(connection, mail_to())


def test_the_connection_is_kept_for_the_next_mail(connection, scripted_smtp):
    for _ in range(3):
        send(connection, mail_to())

    assert scripted_smtp.commands == [["EHLO", *["MAIL", "RCPT", "DATA", "."] * 3]]


@pytest.mark.parametrize("step", ["RCPT", "DATA", "."])
def test_after_a_refusal_the_connection_is_reset(connection, scripted_smtp, step):
    scripted_smtp.on(step, "550 No")
    with pytest.raises(MailRefused):
        send(connection, mail_to())

    send(connection, mail_to())

    [commands] = scripted_smtp.commands
    assert commands[-5:] == ["RSET", "MAIL", "RCPT", "DATA", "."]


@pytest.mark.parametrize("answer", ["421 Bye", "500 What?", HANG_UP], ids=str)
def test_after_a_failed_reset_the_next_mail_uses_a_new_connection(connection, scripted_smtp, answer):
    scripted_smtp.on("RCPT", "550 No")
    scripted_smtp.on("RSET", answer)
    with pytest.raises(MailRefused):
        send(connection, mail_to())

    send(connection, mail_to())

    assert len(scripted_smtp.commands) == 2
    assert len(scripted_smtp.accepted) == 1


@pytest.mark.parametrize("answer", ["421 Enough", HANG_UP], ids=str)
def test_a_kept_connection_closed_by_the_server_is_reopened_at_once(connection, scripted_smtp, answer):
    send(connection, mail_to())
    scripted_smtp.on("MAIL", answer)

    send(connection, mail_to())

    assert len(scripted_smtp.commands) == 2
    assert len(scripted_smtp.accepted) == 2


def test_a_connection_is_reopened_only_once(connection, scripted_smtp):
    send(connection, mail_to())
    scripted_smtp.always("MAIL", "421 Enough")

    with pytest.raises(MailServerUnreachable, match="421 Enough"):
        send(connection, mail_to())

    assert len(scripted_smtp.commands) == 2


def test_an_idle_connection_is_closed(connection, scripted_smtp, monkeypatch):
    send(connection, mail_to())
    connection.close_if_idle()
    assert scripted_smtp.open == 1
    monkeypatch.setattr(notifications_smtp, "IDLE_SECONDS", 0)

    connection.close_if_idle()

    wait_for(lambda: scripted_smtp.open == 0)
    assert scripted_smtp.commands[0][-1] == "QUIT"


@pytest.mark.parametrize("goodbye", ["421 No time", "250 What?", HANG_UP, Hold()], ids=str)
def test_an_accepted_mail_is_sent_even_if_quit_fails(mailer_of, scripted_smtp, monkeypatch, goodbye):
    monkeypatch.setattr(notifications_smtp, "QUIT_SECONDS", 0.2)
    scripted_smtp.on("QUIT", goodbye)

    with mailer_of(scripted_smtp).connection() as connection:
        send(connection, mail_to())

    assert len(scripted_smtp.accepted) == 1


def test_a_mail_that_smtp_cannot_transport_is_refused(connection, scripted_smtp):
    scripted_smtp.always("EHLO", "502 What?")

    with pytest.raises(MailRefused, match="SMTPUTF8"):
        send(connection, mail_to("ädä@forage.example"))


def test_mails_are_counted_by_the_answer_of_the_server(run_service, smtp):
    class MeasuredOffice:
        name = "office"

        metrics = Metrics(prefix="forage")
        mailer = Mailer()

    server = Watched(run_service(MeasuredOffice))
    mailer = server.dependency("mailer")

    def send_measured():
        with mailer.connection() as connection, mailer.measured():
            send(connection, mail_to())

    send_measured()
    smtp.reject("ada@forage.example", "550 No such user")
    with pytest.raises(MailRefused):
        send_measured()
    smtp.stop()
    with pytest.raises(MailServerUnreachable):
        send_measured()

    for outcome in ("sent", "refused", "away"):
        assert server.count("forage_mail_duration_seconds_count", outcome=outcome) == 1
    smtp.start()
