"""An SMTP server that answers, waits or disconnects at each step, as the test chooses."""

import email
import email.policy
from collections import defaultdict
from contextlib import suppress

import eventlet
from eventlet.event import Event
from eventlet.green import socket

HANG_UP = object()
USUAL = {"greeting": "220 Hello", "DATA": "354 Go on", "QUIT": "221 Bye"}


class Hold:
    """An answer that is held back until `release`. Then it is `then`, or the usual answer."""

    def __init__(self, then=None):
        self.then = then
        self._released = Event()
        self.reached = 0

    def release(self):
        if not self._released.ready():
            self._released.send()

    def wait(self):
        self.reached += 1
        self._released.wait()


class ScriptedSmtp:
    """Steps: greeting, a command's word like MAIL, and "." for the end of a mail.

    `on(step, *answers, to=recipient)`: the next answers, each once. `always(step, answer, to=recipient)`: replaces the
    usual answer. An answer is a line, a Hold, or HANG_UP. Before RCPT the recipient is not known.

    received: the mails that were sent up to their dot, with any answer. accepted: those that were answered 250.
    commands: the list of commands for each connection.
    """

    def __init__(self):
        self._listener = eventlet.listen(("127.0.0.1", 0), backlog=100)
        self.host, self.port = self._listener.getsockname()
        self._once, self._always = defaultdict(list), {}
        self._connections = []
        self.commands, self.received, self.accepted = [], [], []
        self._serving = eventlet.spawn(self._serve)

    def on(self, step, *answers, to=None):
        self._once[step, to] += answers

    def always(self, step, answer, to=None):
        self._always[step, to] = answer

    @property
    def open(self):
        """The number of open connections."""
        return len(self._connections)

    def hang_up(self):
        """Close all connections, as servers do with idle clients."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self):
        self._serving.kill()
        self._listener.close()
        self.hang_up()

    def _serve(self):
        while True:
            connection, _ = self._listener.accept()
            eventlet.spawn(self._talk, connection)

    def _talk(self, connection):
        self._connections.append(connection)
        commands = []
        self.commands.append(commands)
        try:
            with suppress(OSError), connection.makefile("rwb", 0) as lines:
                self._converse(lines, commands)
        finally:
            self._connections.remove(connection)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _converse(self, lines, commands):
        recipient = None
        if not self._answer(lines, "greeting", None):
            return
        while line := lines.readline():
            word = line.split(b":")[0].split()[0].decode().upper()
            commands.append(word)
            if word == "RCPT":
                recipient = line.split(b"<")[1].split(b">")[0].decode()
            answer = self._answer(lines, word, recipient)
            if answer is None or word == "QUIT":
                return
            if answer.startswith("354") and not self._take(lines, commands, recipient):
                return

    def _take(self, lines, commands, recipient):
        content = b""
        while (line := lines.readline()) != b".\r\n":
            if not line:
                return False
            content += line.removeprefix(b".") if line.startswith(b"..") else line
        commands.append(".")
        mail = email.message_from_bytes(content, policy=email.policy.default)
        self.received.append(mail)
        answer = self._answer(lines, ".", recipient)
        if answer is not None and answer.startswith("250"):
            self.accepted.append(mail)
        return answer is not None

    def _answer(self, lines, step, recipient):
        """The answer that was sent. None if the connection must be closed."""
        answer = self._next_answer(step, recipient)
        if isinstance(answer, Hold):
            answer.wait()
            answer = answer.then
        if answer is HANG_UP:
            return None
        answer = answer or USUAL.get(step, "250 OK")
        lines.write(answer.encode() + b"\r\n")
        return answer

    def _next_answer(self, step, recipient):
        for key in ((step, recipient), (step, None)):
            if self._once[key]:
                return self._once[key].pop(0)
            if key in self._always:
                return self._always[key]
        return None
