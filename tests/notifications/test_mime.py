"""services.notifications_mime: what Python's email package reads in a mail is what was written into it."""

import email
import email.policy
from email.header import decode_header, make_header
from email.headerregistry import Address
from email.utils import parseaddr

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.notifications_mime import write_mail

SENDER = Address("Forage", addr_spec="shop@forage.example")
LINES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=200)
SPECIAL_LINES = (
    "=?utf-8?q?no?=",
    " two  spaces ",
    "Käse 🍄",
    "a" * 200,
    "ä" + "🍄" * 100,
    'a "quoted" \\ word',
    "a, b <c@d.e>",
)
BODIES = st.text()
SPECIAL_BODIES = (
    ".",
    ".\n..\n.hidden",
    "--=_forage\n--=_forage--\n",
    "Subject: no\n\nno",
    "space \ntab\t\n",
    "a\r\nb\rc\n",
    "=\n=2E=\n",
    "From here\x00\x0b\x0c\x1c\x85\u2028",
    "ä" * 2000,
)


def written(sender=SENDER, recipient="ada@forage.example", subject="Thanks", text="Käse", html="<p>Käse", **headers):
    return write_mail(sender, recipient, subject, text, html, headers)


def parsed(mail):
    return email.message_from_bytes(mail.content, policy=email.policy.default)


def body(mail, kind):
    return mail.get_body((kind,)).get_content()


def lines_of(text):
    """The text as a mail transports it: with line ends of its own, also at its end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else f"{text}\n"


def examples(name, values):
    def add_examples(test):
        for value in values:
            test = example(**{name: value})(test)
        return test

    return add_examples


@examples("subject", SPECIAL_LINES)
@given(subject=LINES)
def test_a_subject_is_read_as_it_was_written(subject):
    mail = written(subject=subject)

    assert parsed(mail)["Subject"] == subject
    assert parsed(mail).defects == []
    header, _, _ = mail.content.partition(b"\r\n\r\n")
    assert header.isascii()
    assert max(map(len, header.split(b"\r\n"))) <= 78


@examples("name", SPECIAL_LINES)
@given(name=LINES)
def test_a_sender_is_read_as_it_was_written(name):
    mail = written(sender=Address(name, addr_spec="shop@forage.example"))

    # Python's newer parser puts spaces between the encoded words of a name.
    read, address = parseaddr(email.message_from_bytes(mail.content)["From"])
    assert (str(make_header(decode_header(read))), address) == (name, "shop@forage.example")
    assert [address.addr_spec for address in parsed(mail)["From"].addresses] == ["shop@forage.example"]


@examples("content", SPECIAL_BODIES)
@given(content=BODIES)
def test_both_parts_are_read_as_they_were_written(content):
    mail = written(text=content, html=f"<p>{content}</p>")

    read = parsed(mail)
    assert [part.get_content_type() for part in read.iter_parts()] == ["text/plain", "text/html"]
    assert lines_of(body(read, "plain")) == lines_of(content)
    assert lines_of(body(read, "html")) == lines_of(f"<p>{content}</p>")
    assert [part.defects for part in read.walk()] == [[], [], []]
    lines = mail.content.split(b"\r\n")
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert max(map(len, lines)) <= 78
    assert mail.content.isascii()


def test_the_other_headers_are_read_as_they_were_written():
    mail = parsed(written(recipient="ada+o'hara@forage.example", **{"X-Forage-Event": "order.created"}))

    assert mail["To"] == "ada+o'hara@forage.example"
    assert mail["X-Forage-Event"] == "order.created"
    assert mail["MIME-Version"] == "1.0"


def test_an_international_address_is_written_as_it_is():
    mail = written(recipient="ädä@forage.example")

    assert mail.is_international
    assert "To: ädä@forage.example".encode() in mail.content.split(b"\r\n")


@pytest.mark.parametrize("ending", ("\r\nBcc: eve@forage.example", "\nBcc: eve@forage.example", "\r", "\x00", "\ud800"))
@pytest.mark.parametrize("field", ("subject", "recipient", "X-Forage-Event"))
def test_a_value_cannot_begin_another_header(field, ending):
    with pytest.raises(ValueError):
        written(**{field: f"ada@forage.example{ending}"})


@pytest.mark.parametrize(
    "recipient",
    ("a@b.example, c@d.example", "<a@b.example> c@d.example", "a@b.example c", "=?utf-8?q?a=40b.example?=", "a" * 999),
)
def test_a_recipient_is_one_address(recipient):
    with pytest.raises(ValueError):
        written(recipient=recipient)
