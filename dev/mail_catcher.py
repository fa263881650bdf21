"""maildev: accepts every mail over SMTP, forwards none, and shows them on a web page."""

import shutil

from dev import npm
from dev.settings import ROOT


class MailCatcher:
    def __init__(self, settings):
        self.settings = settings
        self.folder = ROOT / "dev" / "mail"

    def prepare(self):
        npm.install(self.folder, "the mail catcher")

    def command(self):
        smtp = ["--smtp", str(self.settings.ports["SMTP_PORT"]), "--ip", "127.0.0.1"]
        web = ["--web", str(self.settings.ports["MAIL_WEB_PORT"]), "--web-ip", "127.0.0.1"]
        mails = ["--mail-directory", str(self.settings.folder / "mail"), "--max-emails", "1000"]
        return [shutil.which("node"), str(self.folder / "node_modules" / ".bin" / "maildev"), *smtp, *web, *mails]
