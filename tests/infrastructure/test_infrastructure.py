"""The servers and fixtures of the tests behave as documented."""

import smtplib
from email.message import EmailMessage

import psycopg2
import pytest
from nameko.rpc import rpc as nameko_rpc

from nameko_reliable.testing.waiting import wait_for


def send_mail(smtp, recipient):
    mail = EmailMessage()
    mail["Subject"], mail["To"] = "Chanterelles 🍄", recipient
    mail.set_content("They have arrived.")
    with smtplib.SMTP(smtp.host, smtp.port, timeout=5) as client:
        client.send_message(mail, "shop@forage.example", [recipient])


def test_a_mail_can_be_read(smtp):
    send_mail(smtp, "ada@forage.example")
    send_mail(smtp, "bo@forage.example")

    [mail] = smtp.messages(to="ada@forage.example")
    assert mail["Subject"] == "Chanterelles 🍄"
    assert mail.get_content() == "They have arrived.\n"


def test_one_recipient_can_be_refused(smtp):
    smtp.reject("ada@forage.example", "450 Later")

    with pytest.raises(smtplib.SMTPRecipientsRefused) as refusal:
        send_mail(smtp, "ada@forage.example")

    assert refusal.value.recipients["ada@forage.example"][0] == 450
    send_mail(smtp, "bo@forage.example")


def test_a_stopped_smtp_server_keeps_its_mails(smtp):
    send_mail(smtp, "ada@forage.example")

    smtp.stop()

    with pytest.raises(ConnectionRefusedError):
        send_mail(smtp, "ada@forage.example")
    smtp.start()
    send_mail(smtp, "ada@forage.example")
    assert len(smtp.messages(to="ada@forage.example")) == 2


def test_peek_leaves_a_message_in_its_queue(broker):
    broker.declare("baskets", durable=True)

    broker.publish({"mushrooms": 3}, queue="baskets", headers={"attempt": 2})
    broker.publish(b"\xff not JSON", queue="baskets")

    first, second = broker.peek("baskets")
    assert (first.payload, first.headers["attempt"]) == ({"mushrooms": 3}, 2)
    assert second.body == b"\xff not JSON" or bytes(second.body) == b"\xff not JSON"
    assert wait_for(lambda: broker.depth("baskets") == 2)


def test_a_missing_queue_raises_an_assertion_error_so_tests_can_wait_for_it(broker):
    for look in (broker.depth, broker.peek):
        with pytest.raises(AssertionError, match="There is no queue baskets"):
            look("baskets")
    assert broker.consumers("baskets") == 0


@pytest.mark.parametrize("round", (1, 2))
def test_each_test_has_a_broker_and_a_database_of_its_own(round, broker, database):
    assert broker.queues() == []
    broker.declare("only-here")

    connection = psycopg2.connect(database("example").replace("+psycopg2", ""))
    connection.cursor().execute("CREATE TABLE only_here ()")
    connection.commit()
    connection.close()


class Example:
    name = "example"

    @nameko_rpc
    def double(self, number):
        return 2 * number


def test_a_service_runs_in_this_process(run_service, rpc):
    run_service(Example)

    assert rpc.example.double(21) == 42


def test_consumers_return_after_their_connections_were_dropped(run_service, broker, rpc):
    run_service(Example)
    wait_for(lambda: broker.consumers("rpc-example"))

    wait_for(broker.connections)
    broker.drop_connections()

    wait_for(lambda: broker.consumers("rpc-example"))


def test_a_test_can_stop_and_start_its_own_broker_node(own_broker):
    assert own_broker.stop() == 0
    assert not own_broker.is_ready()

    own_broker.start()
    own_broker.wait_until_ready()
