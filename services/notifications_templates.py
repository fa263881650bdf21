"""The words of mails, lists and pushes, by the templates of `templates/email`."""

from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from nameko.extensions import DependencyProvider

from services.notifications_models import EVENT_TYPES

# Where the links of account mails lead. Their event types are also the purposes of their tokens.
TOKEN_PAGES = {"email_verification": "verify-email", "password_reset": "reset-password"}


class MailTemplates(DependencyProvider):
    """Renders events with the templates of `templates/email`, a folder for each event's name."""

    def setup(self):
        config = self.container.config
        self._shop_url, self._sender = config["FRONTEND_URL"], config["MAIL_FROM"]
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent.parent / "templates" / "email"),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def get_dependency(self, worker_ctx):
        return self

    def subject_and_message(self, event):
        """The subject and the sentence of an event, for lists and pushes."""
        words = self._templates.get_template(f"{_folder(event)}/_words.jinja").make_module({"event": event})
        return str(words.subject), str(words.text)

    def order_mail(self, event, recipient):
        """An EmailMessage with a text and an HTML part."""
        return self._compose(event, recipient, order_url=f"{self._shop_url}/orders/{event.order_id}")

    def summary_mail(self, summary, recipient):
        """As `order_mail`."""
        return self._compose(summary, recipient)

    def account_mail(self, event, recipient, token, expires_in):
        """As `order_mail`. expires_in: the token's life in seconds."""
        # In the fragment, which browsers don't send.
        link = f"{self._shop_url}/{TOKEN_PAGES[EVENT_TYPES[type(event)]]}#token={token}"
        return self._compose(event, recipient, link=link, expires_in=expires_in)

    def _compose(self, event, recipient, **details):
        details |= {"event": event, "shop_url": self._shop_url}
        mail = EmailMessage()
        mail["From"], mail["To"] = self._sender, recipient
        mail["Subject"] = self._render("subject.txt", details).strip()
        mail["Date"] = format_datetime(event.timestamp)
        mail["Message-ID"] = f"<{event.event_id}@{self._sender.domain}>"
        mail["X-Forage-Event"] = event.name
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(self._render("body.txt", details))
        mail.add_alternative(self._render("body.html", details), subtype="html")
        return mail

    def _render(self, part, details):
        return self._templates.get_template(f"{_folder(details['event'])}/{part}").render(details)


def _folder(event):
    return event.name.replace(".", "_")
