"""The texts of mails, lists and pushes, from the templates in `templates/email`."""

from collections.abc import Mapping
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Self

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider

from contracts.orders import OrderEvent
from contracts.users import UserEvent
from services.notifications_mime import Mail, write_mail
from services.notifications_models import EVENT_TYPES, OrderSummary

MailEvent = OrderEvent | UserEvent | OrderSummary

# The storefront's page for the link of each account mail. Its event type is also the purpose of its token.
TOKEN_PAGES = {"email_verification": "verify-email", "password_reset": "reset-password"}


class MailTemplates(DependencyProvider):
    """Renders events with the templates in `templates/email`, which has a folder for each event name."""

    def setup(self) -> None:
        config = self.container.config
        self._shop_url, self._sender = config["FRONTEND_URL"], config["MAIL_FROM"]
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent.parent / "templates" / "email"),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            # Compiled at the first use, and kept.
            auto_reload=False,
        )

    def get_dependency(self, worker_ctx: WorkerContext) -> Self:
        return self

    def subject_and_message(self, event: MailEvent) -> tuple[str, str]:
        """The subject and the message of an event, for lists and pushes."""
        words: Any = self._templates.get_template(f"{_folder(event)}/_words.jinja").make_module({"event": event})
        return str(words.subject), str(words.text)

    def order_mail(self, event: OrderEvent, recipient: str) -> Mail:
        """A mail with a text and an HTML part."""
        return self._compose(event, recipient, order_url=f"{self._shop_url}/orders/{event.order_id}")

    def summary_mail(self, summary: OrderSummary, recipient: str) -> Mail:
        """As `order_mail`."""
        return self._compose(summary, recipient)

    def account_mail(self, event: UserEvent, recipient: str, token: str, expires_in: int) -> Mail:
        """As `order_mail`. expires_in: the life of the token in seconds."""
        # In the fragment, which browsers send to no server.
        link = f"{self._shop_url}/{TOKEN_PAGES[EVENT_TYPES[type(event)]]}#token={token}"
        return self._compose(event, recipient, link=link, expires_in=expires_in)

    def _compose(self, event: MailEvent, recipient: str, **details: Any) -> Mail:
        details |= {"event": event, "shop_url": self._shop_url}
        return write_mail(
            self._sender,
            recipient,
            subject=self._render("subject.txt", details).strip(),
            text=self._render("body.txt", details),
            html=self._render("body.html", details),
            headers={
                "Date": format_datetime(event.timestamp),
                "Message-ID": f"<{event.event_id}@{self._sender.domain}>",
                "X-Forage-Event": event.name,
                "Auto-Submitted": "auto-generated",
            },
        )

    def _render(self, part: str, details: Mapping[str, Any]) -> str:
        return self._templates.get_template(f"{_folder(details['event'])}/{part}").render(details)


def _folder(event: MailEvent) -> str:
    return event.name.replace(".", "_")
