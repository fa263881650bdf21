"""What the tests say to their SMTP server, and read of it."""

import email
import email.policy
import json
import socket
import sys
from pathlib import Path

from nameko_reliable.testing.servers import Server, free_port


class Smtp:
    host = "127.0.0.1"

    def __init__(self, folder, security=None):
        """security: what it demands, as in smtp_server.py."""
        self.folder = folder / "mails"
        self.folder.mkdir()
        self.port = free_port()
        program = str(Path(__file__).with_name("smtp_server.py"))
        command = [sys.executable, program, str(self.port), str(self.folder)]
        self.server = Server(
            "smtp", folder, [*command, json.dumps(security)] if security else command, is_ready=self.is_up
        )
        self.reset()

    def reset(self):
        """No mails, no refusals, and up."""
        for path in self.folder.glob("*.eml"):
            path.unlink()
        self.accept_all()
        if not self.server.process or self.server.process.poll() is not None:
            self.start()

    def messages(self, to):
        """The mails that came for an address, oldest first, as `email.message.EmailMessage`.

        Choose an address of the test's own: mails of shops that tests share may still come.
        """
        mails = [path.read_bytes() for path in sorted(self.folder.glob("*.eml"))]
        # By the first line, which smtp_server.py wrote: to parse a mail takes milliseconds.
        return [
            email.message_from_bytes(mail, policy=email.policy.default)
            for mail in mails
            if to.encode() in mail.partition(b"\n")[0].removeprefix(b"X-RcptTo: ").split(b", ")
        ]

    def reject(self, recipient="*", answer="550 No such user"):
        """`answer` to every RCPT for this recipient, or for all; 4xx: try again later, 5xx: never."""
        self._refusals[recipient] = answer
        self._write_refusals()

    def reject_quoting_links(self, answer="554 Spam, it links to"):
        """`answer` to every DATA, and after it the links of the mail's text."""
        self._refusals["DATA"] = answer
        self._write_refusals()

    def accept_all(self):
        self._refusals = {}
        self._write_refusals()

    def start(self):
        self.server.start().wait_until_ready()

    def stop(self):
        """Connections are refused until `start`. The mails stay."""
        self.server.kill()

    def is_up(self):
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _write_refusals(self):
        path = self.folder / "refusals.json"
        path.with_suffix(".part").write_text(json.dumps(self._refusals))
        path.with_suffix(".part").rename(path)
