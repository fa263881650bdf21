"""The tests' SMTP server, a process of its own: `python smtp_server.py PORT FOLDER`.

Each mail becomes a file of FOLDER. FOLDER/refusals.json says whom to refuse: {recipient or "*": "550 No such user"}.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from aiosmtpd.smtp import SMTP


class Handler:
    def __init__(self, folder):
        self.folder = folder

    async def handle_RCPT(self, server, session, envelope, address, options):
        refusals = json.loads((self.folder / "refusals.json").read_text())
        refusal = refusals.get(address) or refusals.get("*")
        if refusal:
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        path = self.folder / f"{time.time_ns()}.eml"
        recipients = ", ".join(envelope.rcpt_tos)
        mail = f"X-RcptTo: {recipients}\n".encode() + envelope.content.replace(b"\r\n", b"\n")
        path.with_suffix(".part").write_bytes(mail)
        path.with_suffix(".part").rename(path)
        return "250 OK"


async def main(port, folder):
    await asyncio.get_running_loop().create_server(
        lambda: SMTP(Handler(folder), enable_SMTPUTF8=True, hostname="localhost"), "127.0.0.1", port
    )
    await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
