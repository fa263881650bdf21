from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from contracts.events import OrderCreated, OrderLine, OrderStatusUpdated
from contracts.schemas import ORDER_STATUSES

SHOP_URL = "https://forage.example"
ORDER_URL = "https://forage.example/orders/1042"
HOSTILE_NAMES = (
    "<script>alert('ceps')</script> & \"friends\"",
    "{{ event.user_id }} {% raw %}",
    "\u202eفطر الكمأة\u202c 🍄",
    "Chanterelle" * 18 + "!!",
)
CHANGES = [status for status in ORDER_STATUSES if status != "pending"]

templates = Environment(
    loader=FileSystemLoader(Path(__file__).parents[2] / "templates" / "email"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def lines(*names):
    return tuple(
        OrderLine(
            product_id=n, product_name=name, product_price=Decimal("14.50"), quantity=n, subtotal=n * Decimal("14.50")
        )
        for n, name in enumerate(names, 1)
    )


def created(*names):
    return OrderCreated(sequence=1, status="pending", **order(lines(*names)))


def updated(new_status, *names):
    return OrderStatusUpdated(
        sequence=2, status=new_status, old_status="pending", new_status=new_status, **order(lines(*names))
    )


def order(items):
    return dict(
        order_id=1042,
        user_id=7,
        user_email="ada+o'hara@forage.example",
        items=items,
        total_amount=sum(item.subtotal for item in items),
        reservation_id=uuid4(),
        timestamp=datetime(2026, 11, 22, 10, 4, tzinfo=UTC),
    )


def render(event):
    """The three parts of the mail that tells of `event`, an event or a dict of its fields."""
    folder = (
        "order_status_updated"
        if "new_status" in (event if isinstance(event, dict) else vars(event))
        else "order_created"
    )
    context = {"event": event, "order_url": ORDER_URL, "shop_url": SHOP_URL}
    parts = [
        templates.get_template(f"{folder}/{part}").render(context) for part in ("subject.txt", "body.txt", "body.html")
    ]
    return SimpleNamespace(subject=parts[0], text=parts[1], html=parts[2], page=Page(parts[2]))


class Page(HTMLParser):
    """What a reader of the HTML part gets: its text, its tags, where its links lead."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.links = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data):
        self.text += data


EVENTS = [created(*HOSTILE_NAMES), *(updated(status, *HOSTILE_NAMES) for status in CHANGES)]
every_event = pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.name}-{event.status}")


@every_event
def test_a_mail_tells_the_items_the_total_and_the_way_to_the_order_in_both_parts(event):
    mail = render(event)

    for part in (mail.text, mail.page.text):
        for item in event.items:
            assert item.product_name in part
            assert f"{item.quantity} × €14.50" in part
            assert f"€{item.subtotal}" in part
        assert "€145.00" in part
        assert "10 items" in part
        assert "Order 1042" in part
        assert event.user_email in part
    assert ORDER_URL in mail.text
    assert ORDER_URL in mail.page.links


@every_event
def test_a_product_name_cannot_write_html_and_arrives_in_the_text_as_it_is(event):
    mail = render(event)

    assert "script" not in mail.page.tags
    assert "&lt;script&gt;" in mail.html
    assert HOSTILE_NAMES[0] in mail.text


@every_event
def test_the_subject_is_one_line_that_names_the_order(event):
    subject = render(event).subject

    assert subject == " ".join(subject.split())
    assert "1042" in subject
    assert len(subject) < 78


@every_event
def test_a_mail_loads_nothing_from_elsewhere(event):
    mail = render(event)

    assert not {"img", "link", "script", "iframe"} & set(mail.page.tags)
    assert "url(" not in mail.html


@pytest.mark.parametrize("status", CHANGES)
def test_every_change_of_status_has_words_of_its_own(status):
    mail = render(updated(status, "Chanterelles"))
    unknown = render(updated("composted", "Chanterelles"))

    assert mail.subject != unknown.subject
    assert "composted" in unknown.text
    assert f"{status.capitalize()} 22 November 2026" in mail.text


def test_a_right_to_left_name_does_not_turn_its_neighbours_around():
    mail = render(created("فطر الكمأة"))

    assert "\u2068فطر الكمأة\u2069" in mail.text
    assert 'dir="auto"' in mail.html


def test_an_event_may_come_as_plain_dicts():
    event = created("Chanterelles", "Porcini")

    assert render(asdict(event)).html == render(event).html
    assert render(asdict(event)).text == render(event).text


def test_a_hundred_lines_stay_below_the_size_that_gmail_cuts_off():
    mail = render(created(*["Dried porcini, sliced by hand, from the Black Forest"] * 100))

    assert len(mail.html.encode()) < 102_000
