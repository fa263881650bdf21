"""Checks that no secret is logged: searches all logs of the tests for each password and token that the tests use.

Secrets are collected from HTTP requests and answers, from RPC calls and replies, and from settings.
"""

import json
import logging
import re
from urllib.parse import parse_qsl, quote, urlsplit

import requests
from nameko.rpc import MethodProxy, RpcReply
from requests.utils import to_native_string

from dev.settings import ROOT
from nameko_reliable.telemetry.logs import formatter

SECRET_FIELDS = {
    *("password", "old_password", "token", "access_token", "refresh_token", "id_token", "code", "code_verifier"),
    *("client_secret", "state", "nonce"),
}
SECRET_COOKIES = ("forage_refresh", "forage_sign_in")
# Shorter strings occur in logs for other reasons, or are no secrets, like "wrong". The same holds for strings of few
# different characters, like "000000000".
MIN_CHARACTERS = 9
MIN_DIFFERENT_CHARACTERS = 4
# Hypothesis also sends strings that it finds in our source code. The code logs some of them.
SOURCE = "".join(
    path.read_text()
    for folder in ("contracts", "gateway", "kit/src", "services")
    for path in (ROOT / folder).rglob("*.py")
)
JWT = re.compile(r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*")


class Leaks:
    """Collects secrets and log lines from `watch()` on. `found()` returns the lines that contain a secret.

    harmless: strings that tests send in fields for secrets, but that are not secret.
    """

    def __init__(self):
        self.secrets = set()
        self.harmless = set()
        self._lines = []

    def watch(self, monkeypatch):
        leaks = self

        class Collector(logging.Handler):
            def emit(self, record):
                leaks._lines.append(self.format(record))

        self._collector = Collector()
        self._collector.setFormatter(formatter("json", "INFO"))
        logging.getLogger().addHandler(self._collector)

        send, call, result = requests.Session.send, MethodProxy.call_async, RpcReply.result

        def watched_send(session, request, **options):
            answer = send(session, request, **options)
            leaks.note_exchange(request, answer)
            return answer

        def watched_call(proxy, *args, **kwargs):
            leaks.note(kwargs)
            return call(proxy, *args, **kwargs)

        def watched_result(reply):
            answer = result(reply)
            leaks.note(answer)
            return answer

        monkeypatch.setattr(requests.Session, "send", watched_send)
        monkeypatch.setattr(MethodProxy, "call_async", watched_call)
        monkeypatch.setattr(RpcReply, "result", watched_result)

    def end(self):
        logging.getLogger().removeHandler(self._collector)

    def note(self, value):
        """Collect the values of all fields that have a secret's name."""
        if isinstance(value, dict):
            for name, member in value.items():
                if name in SECRET_FIELDS and isinstance(member, str):
                    self.add(member)
                self.note(member)
        elif isinstance(value, list):
            for member in value:
                self.note(member)

    def add(self, secret):
        if secret in self.harmless or f'"{secret}"' in SOURCE:
            return
        if len(secret.strip()) >= MIN_CHARACTERS and len(set(secret)) >= MIN_DIFFERENT_CHARACTERS:
            self.secrets.add(secret)

    def note_exchange(self, request, answer):
        self.add(to_native_string(request.headers.get("Authorization") or "", "latin-1").partition(" ")[2])
        for text in (request.body, answer.text if "json" in answer.headers.get("Content-Type", "") else None):
            self._note_json(text)
        for url in (request.url, answer.headers.get("Location", "")):
            parts = urlsplit(url)
            self.note(dict(parse_qsl(parts.query)))
            self.note(dict(parse_qsl(parts.fragment)))
        for cookie in answer.cookies:
            if cookie.name.startswith(SECRET_COOKIES) and cookie.value:
                self.add(cookie.value)

    def _note_json(self, text):
        try:
            self.note(json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return

    def found(self, *folders):
        """{(source, line)}: the lines with a secret, logged by this process or in log files of the folders.

        Tokens are also recognised by their form.
        """
        return {(source, line) for source, text in self._logs(folders) for line in self._lines_with_secrets(text)}

    def _lines_with_secrets(self, text):
        spellings = [spelling for secret in self.secrets for spelling in _spellings(secret) if spelling in text]
        return [
            line for line in text.splitlines() if JWT.search(line) or any(spelling in line for spelling in spellings)
        ]

    def _logs(self, folders):
        yield "the log of this process", "\n".join(self._lines)
        for folder in folders:
            for path in folder.rglob("*.log"):
                yield str(path), "\n".join(_lines_of_services(path))


def _spellings(secret):
    """The secret unchanged, in a URL, and in JSON."""
    return {secret, quote(secret, errors="replace"), json.dumps(secret)[1:-1]}


def _lines_of_services(path):
    """The lines, without those of the sign-in provider and those of `make run` itself, with its demo password."""
    if path.name.startswith("sign-in-provider"):
        return []
    lines = path.read_text(errors="replace").splitlines()
    if path.name == "run.log":
        return [line for line in lines if re.match(r"(?!sign-in)[\w.-]+ +\| ", line)]
    return lines
