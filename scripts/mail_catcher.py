"""maildev: takes every mail over SMTP, sends none on, and shows them on a web page."""

import shutil
import subprocess

from scripts.settings import ROOT, CannotStart

LOCK = ROOT / "scripts" / "mail" / "package-lock.json"


class MailCatcher:
    def __init__(self, settings):
        self.settings = settings
        self.folder = ROOT / "scripts" / "mail"

    def prepare(self):
        """Installs it from its lock file, unless that was done."""
        installed = self.folder / "node_modules" / ".installed"
        if installed.exists() and installed.read_text() == LOCK.read_text():
            return
        print("forage: installing the mail catcher with npm", flush=True)
        done = subprocess.run(
            ["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=self.folder, capture_output=True, text=True
        )
        if done.returncode:
            raise CannotStart(f"npm could not install the mail catcher: {(done.stderr or done.stdout).strip()}")
        installed.write_text(LOCK.read_text())

    def command(self):
        smtp = ["--smtp", str(self.settings.ports["SMTP_PORT"]), "--ip", "127.0.0.1"]
        web = ["--web", str(self.settings.ports["MAIL_WEB_PORT"]), "--web-ip", "127.0.0.1"]
        mails = ["--mail-directory", str(self.settings.folder / "mail"), "--max-emails", "1000"]
        return [shutil.which("node"), str(self.folder / "node_modules" / ".bin" / "maildev"), *smtp, *web, *mails]
