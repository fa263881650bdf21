"""Nothing secret is logged: every password and token that the tests use is looked for in every log they make.

Secrets are picked up where they pass: in HTTP requests and answers, in RPC calls and replies, in settings.
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
# Shorter ones stand in logs for other reasons, or are no secrets: "wrong". So are those that say one thing again
# and again: "000000000".
LEAST_CHARACTERS = 9
LEAST_DIFFERENT_CHARACTERS = 4
# Hypothesis also sends texts that it finds in our source, some of which are logged there.
SOURCE = "".join(
    path.read_text()
    for folder in ("contracts", "gateway", "kit/src", "services")
    for path in (ROOT / folder).rglob("*.py")
)
JWT = re.compile(r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*")


class Leaks:
    """Collects secrets and log lines from `watch()` on; `found()` tells which lines hold some.

    harmless: what is sent in a secret's place and is none.
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
        """Remember what has a secret's name in it."""
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
        if len(secret.strip()) >= LEAST_CHARACTERS and len(set(secret)) >= LEAST_DIFFERENT_CHARACTERS:
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
        """{(source, line)}: the lines with a secret that were logged, here and in the folders' log files.

        Tokens are also known by their form.
        """
        return {(source, line) for source, text in self._logs(folders) for line in self._telling_lines(text)}

    def _telling_lines(self, text):
        told = [spelling for secret in self.secrets for spelling in _spellings(secret) if spelling in text]
        return [line for line in text.splitlines() if JWT.search(line) or any(spelling in line for spelling in told)]

    def _logs(self, folders):
        yield "the log of this process", "\n".join(self._lines)
        for folder in folders:
            for path in folder.rglob("*.log"):
                yield str(path), "\n".join(_lines_of_services(path))


def _spellings(secret):
    """As it is, in a URL, and in JSON."""
    return {secret, quote(secret, errors="replace"), json.dumps(secret)[1:-1]}


def _lines_of_services(path):
    """Not what `make run` itself prints, the demo accounts' password, nor what the provider in Google's place says."""
    if path.name.startswith("sign-in-provider"):
        return []
    lines = path.read_text(errors="replace").splitlines()
    if path.name == "run.log":
        return [line for line in lines if re.match(r"(?!sign-in)[\w.-]+ +\| ", line)]
    return lines
