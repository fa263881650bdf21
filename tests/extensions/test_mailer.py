"""extensions.mailer: what the server's answers mean, and that a mail it has taken counts as taken."""

from email.message import EmailMessage

import eventlet
import pytest

from extensions import mailer as kit
from extensions.mailer import Mailer, MailPostponed, MailRefused, MailServerAway
from tests.infrastructure.waiting import wait_for


class Office:
    name = "office"

    mailer = Mailer()


@pytest.fixture
def mailer_of(container_factory, config):
    def mailer_of(port):
        container = container_factory(Office, {**config, "SMTP_PORT": port})
        [mailer] = container.dependencies
        mailer.setup()
        return mailer

    return mailer_of


@pytest.fixture
def mailer(mailer_of, smtp):
    return mailer_of(smtp.port)


def mail_to(recipient="ada@forage.example"):
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "bakery@forage.example", recipient, "Käse 🍄"
    mail.set_content("It is done.")
    return mail


def test_a_mail_arrives(mailer, smtp):
    mailer.send(mail_to(), timeout_seconds=5)

    [mail] = smtp.messages(to="ada@forage.example")
    assert mail["Subject"] == "Käse 🍄"


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        ("450 Mailbox busy", MailPostponed),
        ("451 Later", MailPostponed),
        ("550 No such user", MailRefused),
        ("553 No such name", MailRefused),
        ("421 On the way out", MailServerAway),
    ],
)
def test_an_answer_about_the_recipient_is_sorted_by_its_code(mailer, smtp, answer, meaning):
    smtp.reject("ada@forage.example", answer)

    with pytest.raises(meaning, match=answer):
        mailer.send(mail_to(), timeout_seconds=5)

    assert smtp.messages(to="ada@forage.example") == []


def test_a_server_that_is_away_says_nothing_about_the_mail(mailer, smtp):
    smtp.stop()

    with pytest.raises(MailServerAway):
        mailer.send(mail_to(), timeout_seconds=5)


def test_a_server_that_hangs_is_away(mailer_of, smtp_proxy):
    smtp_proxy.hold()

    with pytest.raises(MailServerAway, match="no answer within"):
        mailer_of(smtp_proxy.port).send(mail_to(), timeout_seconds=0.3)

    wait_for(lambda: not smtp_proxy.open)


@pytest.fixture
def server_of():
    """`server_of({"DATA": "354 Go on", …})` answers each command so, others with 250; the port."""
    servers = []

    def server_of(answers):
        listener = eventlet.listen(("127.0.0.1", 0))

        def talk(connection):
            lines = connection.makefile("rwb", 0)
            lines.write(answers.get("", "220 Hello").encode() + b"\r\n")
            in_data = False
            for line in lines:
                if in_data and line != b".\r\n":
                    continue
                word = "." if in_data else line.split()[0].decode().upper()
                in_data = word == "DATA" and answers.get("DATA", "354").startswith("354")
                answer = answers.get(word, "354 Go on" if word == "DATA" else "250 OK")
                if answer is None:
                    return connection.close()
                lines.write(answer.encode() + b"\r\n")

        def serve():
            while True:
                eventlet.spawn(talk, listener.accept()[0])

        servers.append((eventlet.spawn(serve), listener))
        return listener.getsockname()[1]

    yield server_of
    for serving, listener in servers:
        serving.kill()
        listener.close()


@pytest.mark.parametrize(
    ("answers", "meaning"),
    [
        ({"": "554 No service"}, MailServerAway),
        ({"": "421 Too busy"}, MailServerAway),
        ({"": None}, MailServerAway),
        ({"MAIL": "451 Local error"}, MailServerAway),
        ({"MAIL": "550 Sender refused"}, MailServerAway),
        ({"RCPT": None}, MailServerAway),
        ({"DATA": "451 Later"}, MailPostponed),
        ({".": "452 No room"}, MailPostponed),
        ({".": "554 Spam"}, MailRefused),
        ({".": "421 On the way out"}, MailServerAway),
        ({".": None}, MailServerAway),
    ],
    ids=str,
)
def test_each_answer_has_its_meaning(mailer_of, server_of, answers, meaning):
    if answers.get("", "") is None:
        answers = {"": "", "EHLO": None, "HELO": None}

    with pytest.raises(meaning):
        mailer_of(server_of(answers)).send(mail_to(), timeout_seconds=2)


@pytest.mark.parametrize("goodbye", ["421 No time", "250 What?", None], ids=str)
def test_a_mail_that_was_taken_is_sent_whatever_comes_of_the_goodbye(mailer_of, server_of, goodbye):
    mailer_of(server_of({"QUIT": goodbye})).send(mail_to(), timeout_seconds=2)


def test_a_mail_that_was_taken_is_sent_also_when_the_goodbye_hangs(mailer_of, smtp, smtp_proxy, monkeypatch):
    monkeypatch.setattr(kit, "QUIT_SECONDS", 0.2)
    smtp_proxy.hold_at(b"quit")

    mailer_of(smtp_proxy.port).send(mail_to(), timeout_seconds=2)

    assert len(smtp.messages(to="ada@forage.example")) == 1
    wait_for(lambda: not smtp_proxy.open)


def test_a_mail_that_smtp_cannot_carry_is_refused(mailer_of, server_of, mailer):
    old_server = server_of({"EHLO": "502 What?"})

    with pytest.raises(MailRefused):
        mailer_of(old_server).send(mail_to("ädä@forage.example"), timeout_seconds=2)
