"""Mail over SMTP, with an error class for each meaning of the server's answers.

    with self.mailer.connection() as connection:
        for mail in mails:
            with self.mailer.measured():
                connection.begin(mail)
                # After this the server may have the mail: record it here.
                connection.finish()

MailServerUnreachable   no answer about the mail; other mails would fail, too
MailPostponed           the server may accept the mail later
MailRefused             the server will never accept the mail
MailUncertain           the server may have the mail

Settings: SMTP_HOST, SMTP_PORT, SMTP_TLS, SMTP_CA, SMTP_USER, SMTP_PASSWORD.
"""

import logging
import re
import smtplib
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, Self, cast

import eventlet
from eventlet.semaphore import Semaphore
from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider
from prometheus_client import Histogram

from nameko_reliable.telemetry.tracing import Operation, Tracer
from services.notifications_mime import Mail

logger = logging.getLogger(__name__)

# RFC 5321, 4.5.3.2.
COMMAND_SECONDS = 300
END_OF_DATA_SECONDS = 600
QUIT_SECONDS = 1
# A connection is closed after this time without a mail.
IDLE_SECONDS = 10
# Of a process at the same time.
MAX_CONNECTIONS = 20
END_OF_DATA = b".\r\n"

MAIL_DURATION = Histogram(
    "forage_mail_duration_seconds",
    "Tries to send a mail. outcome: sent, postponed (4xx for this mail), refused (5xx), uncertain (may be sent), "
    "away (server unreachable), error (aborted before the final dot).",
    ["service", "outcome"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)


class MailServerUnreachable(Exception):
    """The server is unreachable, or accepts no mail at all at present. This is not about the mail itself."""


class MailPostponed(Exception):
    """The server answered 4xx to this mail, or broke off before its end: it may accept it later."""


class MailRefused(Exception):
    """The server answered 5xx to this mail: it will never accept it."""


class MailUncertain(Exception):
    """The whole mail was sent, and no answer came: the server may have it."""


OUTCOMES = {
    MailServerUnreachable: "away",
    MailPostponed: "postponed",
    MailRefused: "refused",
    MailUncertain: "uncertain",
}


class ConnectionLost(Exception):
    pass


class AnswerTimeout(Exception):
    """Not an OSError: smtplib would take that for a lost connection."""


class Mailer(DependencyProvider):
    tracer = Tracer()

    def setup(self) -> None:
        config = self.container.config
        self.host, self.port, self.tls = config["SMTP_HOST"], config["SMTP_PORT"], config["SMTP_TLS"]
        self.ca = config.get("SMTP_CA")
        self.login = (config["SMTP_USER"], config["SMTP_PASSWORD"]) if config.get("SMTP_USER") else None
        # Looked up once: a slow name server would block the event loop at each connection.
        self.local_hostname = smtplib.SMTP().local_hostname
        self.slots = Semaphore(MAX_CONNECTIONS)
        self._sending = Operation("SMTP send", "client", {"server.address": self.host, "server.port": self.port})

    def get_dependency(self, worker_ctx: WorkerContext) -> Self:
        return self

    @contextmanager
    def connection(self) -> Iterator["MailConnection"]:
        """A MailConnection for the block."""
        connection = MailConnection(self)
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def measured(self) -> Iterator[None]:
        """A span and a metric for the try to send a mail in the block."""
        started_at, outcome = time.perf_counter(), "error"
        try:
            with self.tracer.span(self._sending):
                yield
            outcome = "sent"
        except tuple(OUTCOMES) as error:
            outcome = OUTCOMES[type(error)]
            raise
        finally:
            MAIL_DURATION.labels(self.container.service_name, outcome).observe(time.perf_counter() - started_at)


class MailConnection:
    """A connection to the mail server: opened for the first mail, and kept for the next ones."""

    def __init__(self, mailer: Mailer) -> None:
        self._mailer = mailer
        self._smtp: Any = None
        self._is_in_mail = self._needs_reset = False
        self._used_at = 0.0

    def begin(self, mail: Mail) -> None:
        """Send all of a mail but its final dot, which `finish` sends.

        Raises MailServerUnreachable, MailPostponed or MailRefused, each with a sentence.
        """
        try:
            self._begin(mail)
        except ValueError as error:
            self.close()
            raise MailRefused(f"the mail can't be put into SMTP: {error}") from error

    def finish(self) -> None:
        """Send the final dot of the mail, and return once the server has accepted the mail.

        Raises MailPostponed, MailRefused or MailUncertain.
        """
        try:
            self._call(lambda: self._smtp.send(END_OF_DATA))
        except (ConnectionLost, AnswerTimeout) as error:
            # The dot was not sent.
            raise MailPostponed(f"before the mail's end {error}") from error
        try:
            code, text = self._command(self._smtp.getreply, seconds=END_OF_DATA_SECONDS)
        except (ConnectionLost, AnswerTimeout) as error:
            raise MailUncertain(f"the mail server may have it: after the mail's end {error}") from error
        self._is_in_mail, self._used_at = False, time.monotonic()
        if not 200 <= code < 300:
            if not 400 <= code < 600:
                self.drop()
                raise MailUncertain(f"the mail server may have it: it said {code} {text} to the mail's end")
            self._raise_answer(code, text)

    def close_if_idle(self) -> None:
        """Close a connection that was not used for IDLE_SECONDS."""
        if self._smtp is not None and time.monotonic() - self._used_at > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """Close with QUIT, unless a mail was begun and not finished."""
        if self._smtp is not None and not self._is_in_mail:
            # The answer to QUIT does not matter: all mails have been answered.
            with eventlet.Timeout(QUIT_SECONDS, False), suppress(smtplib.SMTPException, OSError):
                self._smtp.quit()
        self.drop()

    def drop(self) -> None:
        """Close at once. The server drops a mail that was begun and not finished."""
        if self._smtp is not None:
            smtp, self._smtp = self._smtp, None
            self._is_in_mail = self._needs_reset = False
            smtp.close()
            self._mailer.slots.release()

    def _begin(self, mail: Mail) -> None:
        if self._needs_reset:
            self._reset()
        is_kept = self._smtp is not None
        if not is_kept:
            self._open()
        # RFC 5321, 4.5.2. The content begins with a header and has no bare line feed.
        content = mail.content.replace(b"\r\n.", b"\r\n..")
        options = f" SIZE={len(content)}" if self._smtp.has_extn("size") else ""
        if mail.is_international:
            if not self._smtp.has_extn("smtputf8"):
                raise ValueError("its addresses need SMTPUTF8, which the mail server doesn't know")
            options += " SMTPUTF8 BODY=8BITMIME"
            self._smtp.command_encoding = "utf-8"
        self._is_in_mail = True
        try:
            try:
                # smtplib's own `mail` and `rcpt` would parse the addresses, which is slow. write_mail has checked them.
                code, text = self._command(self._smtp.docmd, "MAIL", f"FROM:<{mail.sender}>{options}")
            except ConnectionLost:
                if not is_kept:
                    raise
                # The server closed the connection after the last mail. This is not about this mail.
                return self._begin(mail)
            if code == 421:
                self.drop()
                if is_kept:
                    return self._begin(mail)
                raise MailServerUnreachable(f"the mail server {self._address} takes no mail: it said {code} {text}")
            self._expect(range(200, 300), code, text)
            self._expect(range(200, 300), *self._command(self._smtp.docmd, "RCPT", f"TO:<{mail.recipient}>"))
            self._expect([354], *self._command(self._smtp.docmd, "data"))
            self._call(lambda: self._smtp.send(content))
        except (ConnectionLost, AnswerTimeout) as error:
            raise MailPostponed(f"before the mail's end {error}") from error

    def _open(self) -> None:
        self._mailer.slots.acquire()
        try:
            self._smtp = self._connect()
        except (smtplib.SMTPException, AnswerTimeout, OSError, ValueError) as error:
            reason: object = error
            if isinstance(error, smtplib.SMTPResponseException):
                reason = f"it said {error.smtp_code} {self._without_password(_readable(error.smtp_error))}"
            if isinstance(error, smtplib.SMTPAuthenticationError):
                reason = f"it refuses SMTP_USER with SMTP_PASSWORD, {reason}"
            # Not `from error`, which may quote the password.
            raise MailServerUnreachable(f"the mail server {self._address} is unreachable: {reason}") from None
        finally:
            if self._smtp is None:
                self._mailer.slots.release()

    def _connect(self) -> smtplib.SMTP:
        """A connection that is ready for mails: greeted, encrypted and logged in as the settings say."""
        mailer, smtp = self._mailer, cast(Any, None)
        try:
            with _answer_within(COMMAND_SECONDS):
                if mailer.tls == "implicit":
                    smtp = smtplib.SMTP_SSL(
                        mailer.host, mailer.port, mailer.local_hostname, context=self._tls_context()
                    )
                else:
                    smtp = smtplib.SMTP(mailer.host, mailer.port, mailer.local_hostname)
            # Else the final dot, a packet of its own, would wait for the acknowledgement of the packet before it.
            smtp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with _answer_within(COMMAND_SECONDS):
                smtp.ehlo_or_helo_if_needed()
            if mailer.tls == "starttls":
                with _answer_within(COMMAND_SECONDS):
                    smtp.starttls(context=self._tls_context())
                with _answer_within(COMMAND_SECONDS):
                    smtp.ehlo_or_helo_if_needed()
            if mailer.login is not None:
                with _answer_within(COMMAND_SECONDS):
                    smtp.login(*mailer.login)
        except BaseException:
            if smtp is not None:
                smtp.close()
            raise
        return smtp

    def _tls_context(self) -> ssl.SSLContext:
        """Verifies certificate and host name. Made for each connection, because the authority's file may change."""
        return ssl.create_default_context(cafile=self._mailer.ca)

    def _without_password(self, answer: str) -> str:
        """The answer without the password: a server may quote a command."""
        if self._mailer.login is not None:
            user, password = self._mailer.login
            for words in (f"\0{user}\0{password}", password):
                answer = answer.replace(b64encode(words.encode()).decode(), "…").replace(words, "…")
        return answer

    def _reset(self) -> None:
        self._needs_reset = False
        with suppress(ConnectionLost, AnswerTimeout):
            code, _ = self._command(self._smtp.rset)
            if code != 250:
                self.drop()

    def _command(self, send: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> tuple[int, str]:
        """(code, text) of the answer."""
        code, text = self._call(send, *arguments, seconds=seconds)
        if code == -1:
            self.drop()
            raise ConnectionLost("the server sent something that is not an SMTP answer")
        return code, _readable(text)

    def _call(self, send: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Any:
        """The result of `send`. After ConnectionLost or AnswerTimeout the connection has been dropped."""
        try:
            with _answer_within(seconds or COMMAND_SECONDS):
                return send(*arguments)
        except AnswerTimeout:
            self.drop()
            raise
        except (smtplib.SMTPException, OSError) as error:
            self.drop()
            raise ConnectionLost(f"the connection to the mail server was lost: {error}") from error

    def _expect(self, codes: Container[int], code: int, text: str) -> None:
        if code not in codes:
            self._raise_answer(code, text)

    def _raise_answer(self, code: int, text: str) -> NoReturn:
        if 400 <= code < 600 and code != 421:
            self._is_in_mail, self._needs_reset = False, True
        else:
            # 421: the server is closing the connection, in answer to any command.
            self.drop()
        error_class = MailRefused if 500 <= code < 600 else MailPostponed
        raise error_class(f"the mail server said {code} {text}")

    @property
    def _address(self) -> str:
        return f"{self._mailer.host}:{self._mailer.port}"


def _readable(answer: object) -> str:
    """A server's answer as one line of text. It may have any bytes, and PostgreSQL stores no NUL."""
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer or "")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text)


@contextmanager
def _answer_within(seconds: float) -> Iterator[None]:
    with eventlet.Timeout(seconds, AnswerTimeout(f"there was no answer within {seconds} s")):
        yield
