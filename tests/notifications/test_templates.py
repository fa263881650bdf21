from dataclasses import asdict, replace
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from contracts.orders import ORDER_STATUSES, OrderCreated, OrderLine, OrderStatusUpdated
from services.notifications_models import OrderSummary
from tests.factories import user_password_reset_requested, user_registered, user_verification_requested

SHOP_URL = "https://forage.example"
ORDER_URL = "https://forage.example/orders/1042"
LINK = "https://forage.example/verify-email#token=kQ2-_x9"
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
    """The three parts of the mail about `event`, an event or a dict of its fields."""
    folder = (
        "order_status_updated"
        if "new_status" in (event if isinstance(event, dict) else vars(event))
        else "order_created"
    )
    return render_folder(folder, event=event, order_url=ORDER_URL)


def render_account(event, expires_in=1800):
    return render_folder(event.name.replace(".", "_"), event=event, link=LINK, expires_in=expires_in)


def render_folder(folder, **context):
    parts = [
        templates.get_template(f"{folder}/{part}").render(context, shop_url=SHOP_URL)
        for part in ("subject.txt", "body.txt", "body.html")
    ]
    return SimpleNamespace(subject=parts[0], text=parts[1], html=parts[2], page=Page(parts[2]))


class Page(HTMLParser):
    """The text, the tags and the links of an HTML part."""

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
for_each_event = pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.name}-{event.status}")


@for_each_event
def test_both_parts_of_a_mail_have_the_items_the_total_and_the_link(event):
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


@for_each_event
def test_a_product_name_is_escaped_in_html_and_unchanged_in_text(event):
    mail = render(event)

    assert "script" not in mail.page.tags
    assert "&lt;script&gt;" in mail.html
    assert HOSTILE_NAMES[0] in mail.text


@for_each_event
def test_the_subject_is_one_line_that_names_the_order(event):
    subject = render(event).subject

    assert subject == " ".join(subject.split())
    assert "1042" in subject
    assert len(subject) < 78


@for_each_event
def test_a_mail_loads_no_external_content(event):
    mail = render(event)

    assert not {"img", "link", "script", "iframe"} & set(mail.page.tags)
    assert "url(" not in mail.html


@pytest.mark.parametrize("status", CHANGES)
def test_every_status_change_has_its_own_texts(status):
    mail = render(updated(status, "Chanterelles"))
    unknown = render(updated("composted", "Chanterelles"))

    assert mail.subject != unknown.subject
    assert "composted" in unknown.text
    assert f"{status.capitalize()} 22 November 2026" in mail.text


def test_a_cancel_by_the_shop_has_its_reason():
    mail = render(replace(updated("cancelled", "Chanterelles"), reason="not-confirmed"))

    for part in (mail.text, mail.page.text):
        assert "waited too long to be confirmed" in " ".join(part.split())
        assert "Wasn’t it you?" not in part


def test_a_right_to_left_name_does_not_change_the_direction_of_its_neighbours():
    mail = render(created("فطر الكمأة"))

    assert "\u2068فطر الكمأة\u2069" in mail.text
    assert 'dir="auto"' in mail.html


def test_an_event_may_come_as_plain_dicts():
    event = created("Chanterelles", "Porcini")

    assert render(asdict(event)).html == render(event).html
    assert render(asdict(event)).text == render(event).text


def test_a_mail_with_a_hundred_lines_is_below_gmails_limit():
    mail = render(created(*["Dried porcini, sliced by hand, from the Black Forest"] * 100))

    assert len(mail.html.encode()) < 102_000


# Summaries


def summary(*orders, total=None):
    return OrderSummary(
        user_id=7,
        user_email="ada+o'hara&<b>@forage.example",
        orders=orders,
        total=len(orders) if total is None else total,
        timestamp=datetime(2026, 11, 22, 11, 4, tzinfo=UTC),
    )


def test_both_parts_of_a_summary_have_the_status_of_each_order():
    mail = render_folder("order_summary", event=summary(created("Chanterelles"), updated("shipped", "Porcini", "Ceps")))

    for part in (mail.text, mail.page.text):
        assert "Order 1042: placed" in part and "Order 1042: shipped" in part
        assert "1 item" in part and "€14.50" in part
        assert "3 items" in part and "€43.50" in part
        assert "As of 22 November 2026, 11:04" in part
        assert "ada+o'hara&<b>@forage.example" in part
        assert "more order" not in part
    assert mail.page.links.count(ORDER_URL) == 2
    assert f"{SHOP_URL}/orders\n" in mail.text and f"{SHOP_URL}/orders" in mail.page.links


@pytest.mark.parametrize("total, words", ((2, "And 1 more order."), (18000, "And 17999 more orders.")))
def test_a_summary_has_the_number_of_orders_it_leaves_out(total, words):
    mail = render_folder("order_summary", event=summary(created("Chanterelles"), total=total))

    assert words in mail.text and words in mail.page.text


def test_a_summary_loads_no_external_content_and_its_subject_is_one_line():
    mail = render_folder("order_summary", event=summary(created(*HOSTILE_NAMES)))

    assert not {"img", "link", "script", "iframe", "b"} & set(mail.page.tags)
    assert "url(" not in mail.html
    assert mail.subject == " ".join(mail.subject.split())


# Account mails

ACCOUNT_EVENTS = [
    make(email="ada+o'hara&<b>@forage.example")
    for make in (user_registered, user_verification_requested, user_password_reset_requested)
]
every_account_event = pytest.mark.parametrize("event", ACCOUNT_EVENTS, ids=lambda event: event.name)


@every_account_event
def test_an_account_mail_shows_its_link_in_full_in_both_parts(event):
    mail = render_account(event)

    assert f"\n{LINK}\n" in mail.text
    assert LINK in mail.page.text
    assert mail.page.links.count(LINK) == 2


@every_account_event
def test_an_account_mail_has_the_lifetime_of_its_link_and_its_recipient(event):
    mail = render_account(event)

    for part in (mail.text, mail.page.text):
        assert "works once, and for 30 minutes." in part
        assert event.email in part


@pytest.mark.parametrize(
    "seconds, words", ((60, "1 minute"), (1800, "30 minutes"), (3600, "1 hour"), (24 * 3600, "24 hours"))
)
def test_a_lifetime_is_written_in_its_largest_unit(seconds, words):
    assert f"for {words}." in render_account(user_registered(), expires_in=seconds).text


@pytest.mark.parametrize("make", (user_registered, user_verification_requested))
def test_a_registration_mail_explains_what_to_do_without_a_registration(make):
    mail = render_account(make())

    for part in (mail.text, mail.page.text):
        assert "Didn’t you register?" in part
        assert "ignore the link" in " ".join(part.split())


def test_a_password_mail_explains_that_nothing_changes_without_a_request():
    mail = render_account(user_password_reset_requested())

    for part in (mail.text, mail.page.text):
        assert "Wasn’t it you?" in part
        assert "nothing changes" in " ".join(part.split())


@every_account_event
def test_each_account_mail_has_its_own_subject_of_one_line(event):
    subject = render_account(event).subject

    assert subject == " ".join(subject.split())
    assert len(subject) < 78
    assert [render_account(other).subject for other in ACCOUNT_EVENTS].count(subject) == 1


@every_account_event
def test_an_account_mail_loads_no_external_content_and_escapes_the_address(event):
    mail = render_account(event)

    assert not {"img", "link", "script", "iframe", "b"} & set(mail.page.tags)
    assert "url(" not in mail.html


@every_account_event
def test_the_texts_of_an_account_mail_need_no_link(event):
    words = templates.get_template(f"{event.name.replace('.', '_')}/_words.jinja").make_module({"event": event})

    assert words.subject and words.text
    assert "http" not in words.text
