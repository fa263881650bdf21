"""The tests' SMTP server, which runs as its own process: `python smtp_server.py PORT FOLDER [SECURITY]`.

SECURITY: the TLS and the login that it requires, as JSON: {"tls": "starttls" or "implicit", "certificate": file,
"key": file, "user": …, "password": …}.

Each mail becomes a file in FOLDER. FOLDER/refusals.json contains refusals: {recipient or "*": "550 No such user"}. With
{"DATA": "554 Spam"} the refusal quotes the links of the mail.
"""

import asyncio
import email
import email.policy
import json
import re
import ssl
import sys
import time
from pathlib import Path

from aiosmtpd.smtp import SMTP, AuthResult


class Handler:
    def __init__(self, folder):
        self.folder = folder

    def refusals(self):
        return json.loads((self.folder / "refusals.json").read_text())

    async def handle_RCPT(self, server, session, envelope, address, options):
        refusals = self.refusals()
        refusal = refusals.get(address) or refusals.get("*")
        if refusal:
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if refusal := self.refusals().get("DATA"):
            mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
            return " ".join([refusal, *re.findall(r"http\S+", mail.get_body(("plain",)).get_content())])
        path = self.folder / f"{time.time_ns()}.eml"
        recipients = ", ".join(envelope.rcpt_tos)
        mail = f"X-RcptTo: {recipients}\n".encode() + envelope.content.replace(b"\r\n", b"\n")
        path.with_suffix(".part").write_bytes(mail)
        path.with_suffix(".part").rename(path)
        return "250 OK"


async def main(port, folder, security):
    context, options = None, {}
    if security:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(security["certificate"], security["key"])
        login = (security["user"].encode(), security["password"].encode())

        def authenticate(server, session, envelope, mechanism, given):
            # Quotes the password, as some servers do.
            answer = f"535 5.7.8 Not with {given.password.decode()}"
            return AuthResult(success=(given.login, given.password) == login, handled=False, message=answer)

        options = {"auth_required": True, "authenticator": authenticate, "auth_require_tls": False}
        if security["tls"] == "starttls":
            options |= {"tls_context": context, "require_starttls": True, "auth_require_tls": True}
    await asyncio.get_running_loop().create_server(
        lambda: SMTP(Handler(folder), enable_SMTPUTF8=True, hostname="localhost", **options),
        "127.0.0.1",
        port,
        ssl=context if security and security["tls"] == "implicit" else None,
    )
    await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]) if sys.argv[3:] else None))
