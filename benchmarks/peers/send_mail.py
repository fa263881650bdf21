"""Mails of a text and an HTML part with smtplib, over one kept connection: `python send_mail.py HOST PORT SECONDS`.

The parts are those that the shop mailed for an order of two lines when this was written.
"""

import json
import smtplib
import sys
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path

from closed_loop import repeat

TEXT, HTML = (Path(__file__).with_name(f"order_mail.{kind}").read_text(encoding="utf-8") for kind in ("txt", "html"))


def compose():
    mail = EmailMessage()
    mail["From"], mail["To"] = "Forage <shop@forage.example>", "customer@forage.example"
    mail["Subject"] = "Thank you! We have your order 1001"
    mail["Message-ID"] = make_msgid(domain="forage.example")
    mail.set_content(TEXT)
    mail.add_alternative(HTML, subtype="html")
    return mail


def main(host, port, seconds):
    with smtplib.SMTP(host, int(port)) as server:
        server.send_message(compose())
        print(json.dumps(repeat(lambda: server.send_message(compose()), float(seconds))))


if __name__ == "__main__":
    main(*sys.argv[1:])
