"""nginx in front of the gateway, with the same configuration as in the storefront's image: frontend/nginx.conf.

In the image the entrypoint of nginx fills in the variables. Here this module does, and it also writes the main
nginx.conf, which includes the other.
"""

import grp
import os
import pwd
import re
import resource
import shutil
import subprocess
from pathlib import Path

from dev import npm
from dev.frontend import BUILT_FROM
from dev.npm import FRONTEND
from dev.programs import find_nginx
from nameko_reliable.testing.servers import CannotStart, account, can_reach, reachable

# As in the image (frontend/Dockerfile), if the machine allows a process that many open files.
WORKERS, CONNECTIONS, FILES = 2, 4096, 16384
# All paths are relative to nginx's prefix folder, so the folder's name may contain any character.
MAIN = """\
daemon off;
{user}worker_processes {workers};
worker_rlimit_nofile {files};
pid nginx.pid;
events {{
    worker_connections {connections};
}}
http {{
    include {mime_types};
    default_type application/octet-stream;
    # The gateway logs the requests.
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include storefront.conf;
}}
"""


class Nginx:
    """folder: for its files, made if it is missing.

    settings: those of the image: FRONTEND_PORT, GATEWAY_PORT, FRONTEND_URL and TRUSTED_PROXIES.

    If we are root, its workers run as the same account as PostgreSQL.
    """

    def __init__(self, folder, settings):
        self.settings = {
            **settings,
            # Other machines must not reach the demo accounts.
            "FRONTEND_HOST": "127.0.0.1",
            "FRONTEND_FOLDER": "html",
            "GATEWAY_HOST": "127.0.0.1",
            # Never used, since the gateway's address is not a name.
            "NGINX_LOCAL_RESOLVERS": "127.0.0.1",
        }
        self.account = account()
        if self.account and not can_reach(self.account, folder.parent) and not folder.is_symlink():
            # From an earlier start, when the account could reach it.
            shutil.rmtree(folder, ignore_errors=True)
        self.folder = reachable(folder, self.account)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The workers, which run as another account, must be able to enter it.
        self.folder.chmod(0o711)

    def prepare(self, build):
        self.copy(build)
        (self.folder / "storefront.conf").write_text(storefront_configuration(self.settings))
        (self.folder / "nginx.conf").write_text(self.main_configuration())
        done = subprocess.run([*self.command(), "-t", "-q"], cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise CannotStart(f"nginx refuses the storefront's configuration: {done.stderr.strip()}")

    def copy(self, build):
        """Copies the build, if it has changed. The workers can read the copy; later builds don't change it."""
        copied, html = self.folder / "copied", self.folder / "html"
        with npm.locked(build.parent):
            built_from = (build / BUILT_FROM).read_text()
            if copied.exists() and copied.read_text() == built_from:
                return
            copied.unlink(missing_ok=True)
            shutil.rmtree(html, ignore_errors=True)
            shutil.copytree(build, html, ignore=shutil.ignore_patterns(BUILT_FROM), copy_function=shutil.copyfile)
        for path in (html, *html.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        copied.write_text(built_from)

    def main_configuration(self):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
        user = ""
        if self.account:
            group = grp.getgrgid(pwd.getpwnam(self.account).pw_gid).gr_name
            user = f"user {self.account} {group};\n"
        return MAIN.format(
            user=user,
            workers=WORKERS,
            files=files,
            connections=min(CONNECTIONS, files // 2),
            mime_types=mime_types(),
        )

    def command(self):
        return [find_nginx(), "-p", str(self.folder), "-c", "nginx.conf", "-e", "stderr"]


def storefront_configuration(settings):
    """frontend/nginx.conf with its variables filled in, as the image's entrypoint does."""
    script = '. "$0" && printf %s "$REAL_IP_FROM"'
    real_ip_from = subprocess.run(
        ["sh", "-c", script, FRONTEND / "trusted-proxies.envsh"],
        env={"PATH": os.environ["PATH"], "TRUSTED_PROXIES": settings["TRUSTED_PROXIES"]},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    values = {**settings, "REAL_IP_FROM": real_ip_from.stdout}
    return re.sub(r"\$\{([A-Z_]+)\}", lambda name: values[name[1]], (FRONTEND / "nginx.conf").read_text())


def mime_types():
    """The file of MIME types that is installed beside nginx's own nginx.conf."""
    built = subprocess.run([find_nginx(), "-V"], capture_output=True, text=True).stderr
    return Path(re.search(r"--conf-path=(\S+)", built)[1]).with_name("mime.types")
