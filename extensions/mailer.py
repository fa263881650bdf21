"""Mail over SMTP, with the server's answers sorted by what they mean for a queue of mails.

Settings: SMTP_HOST, SMTP_PORT.
"""

import logging
import smtplib
import time
from contextlib import suppress

import eventlet
from nameko.extensions import DependencyProvider
from prometheus_client import Histogram

from extensions.tracing import Operation, Tracer

logger = logging.getLogger(__name__)

QUIT_SECONDS = 1

MAILS = Histogram(
    "forage_mail_duration_seconds",
    "Tries to send a mail. outcome: sent, postponed (4xx for this mail), refused (5xx), away (says nothing about it), "
    "error.",
    ["service", "outcome"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


class MailServerAway(Exception):
    """The server is out of reach or takes no mail at all at the moment: says nothing about this mail."""


class MailPostponed(Exception):
    """The server says 4xx to this mail: it may take it later."""


class MailRefused(Exception):
    """The server says 5xx to this mail: it never will."""


OUTCOMES = {MailServerAway: "away", MailPostponed: "postponed", MailRefused: "refused"}


class Mailer(DependencyProvider):
    tracer = Tracer()

    def setup(self):
        config = self.container.config
        self._host, self._port = config["SMTP_HOST"], config["SMTP_PORT"]
        self._sending = Operation("SMTP send", "client", {"server.address": self._host, "server.port": self._port})

    def get_dependency(self, worker_ctx):
        return self

    def send(self, mail, timeout_seconds):
        """Hand an email.message.EmailMessage with one recipient to the server; return once it has taken it.

        Raises MailServerAway, MailPostponed or MailRefused, each with a sentence. After MailServerAway
        for a time-out the server may have taken the mail: no protocol can tell.
        """
        started_at, outcome = time.perf_counter(), "error"
        try:
            with self.tracer.span(self._sending):
                self._send(mail, timeout_seconds)
            outcome = "sent"
        except (MailServerAway, MailPostponed, MailRefused) as error:
            outcome = OUTCOMES[type(error)]
            raise
        finally:
            MAILS.labels(self.container.service_name, outcome).observe(time.perf_counter() - started_at)

    def _send(self, mail, timeout_seconds):
        try:
            with eventlet.Timeout(timeout_seconds, TimeoutError(f"no answer within {timeout_seconds} s")):
                smtp = smtplib.SMTP(self._host, self._port, timeout=timeout_seconds)
                try:
                    smtp.send_message(mail)
                except BaseException:
                    smtp.close()
                    raise
        except smtplib.SMTPRecipientsRefused as error:
            code, answer = next(iter(error.recipients.values()))
            raise _about_this_mail(code, answer) from error
        except smtplib.SMTPDataError as error:
            raise _about_this_mail(error.smtp_code, error.smtp_error) from error
        except (ValueError, smtplib.SMTPNotSupportedError) as error:
            raise MailRefused(f"the mail can't be put into SMTP: {error}") from error
        except (smtplib.SMTPException, OSError) as error:
            raise MailServerAway(f"the mail server {self._host}:{self._port} is away: {error}") from error
        # It has taken the mail. Whatever comes of the goodbye, to fail now would send it twice.
        with eventlet.Timeout(QUIT_SECONDS, False), suppress(smtplib.SMTPException, OSError):
            smtp.quit()
        smtp.close()


def _about_this_mail(code, answer):
    # 421 is the server on its way out, whatever it was asked.
    kind = MailServerAway if code == 421 else MailRefused if code >= 500 else MailPostponed
    return kind(f"the mail server said {code} {answer.decode(errors='replace')}")
