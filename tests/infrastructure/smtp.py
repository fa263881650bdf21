"""Starts and controls the tests' SMTP server, and reads its mails."""

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
        """security: TLS and login as in smtp_server.py."""
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
        """Delete the mails and the refusals, and start the server if it is stopped."""
        for path in self.folder.glob("*.eml"):
            path.unlink()
        self.accept_all()
        if not self.server.process or self.server.process.poll() is not None:
            self.start()

    def messages(self, to):
        """The mails to an address, oldest first, as `email.message.EmailMessage`.

        Use an address that no other test has: mails of shared shops may still arrive.
        """
        mails = [path.read_bytes() for path in sorted(self.folder.glob("*.eml"))]
        # By the first line, which smtp_server.py wrote, since parsing a mail takes milliseconds.
        return [
            email.message_from_bytes(mail, policy=email.policy.default)
            for mail in mails
            if to.encode() in mail.partition(b"\n")[0].removeprefix(b"X-RcptTo: ").split(b", ")
        ]

    def reject(self, recipient="*", answer="550 No such user"):
        """Answer every RCPT for this recipient, or for all, with `answer`. 4xx: try again later, 5xx: never."""
        self._refusals[recipient] = answer
        self._write_refusals()

    def reject_quoting_links(self, answer="554 Spam, it links to"):
        """Answer every DATA with `answer`, followed by the links in the mail's text."""
        self._refusals["DATA"] = answer
        self._write_refusals()

    def accept_all(self):
        self._refusals = {}
        self._write_refusals()

    def start(self):
        self.server.start().wait_until_ready()

    def stop(self):
        """Refuse connections until `start`. The mails are kept."""
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
