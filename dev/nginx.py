"""nginx before the gateway, with the very configuration that the storefront's image has: frontend/nginx.conf.

In the image the entrypoint of nginx fills it in from the environment, here we do; and the nginx.conf around it is ours.
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

# As the image has them (frontend/Dockerfile), where the machine allows a process that many files.
WORKERS, CONNECTIONS, FILES = 2, 4096, 16384
# All paths are below the folder that it is started with, whatever its name has in it.
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
    # The gateway's log has what is asked of the shop.
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
    """folder: its own, made when it isn't there. settings: the image's, FRONTEND_PORT, GATEWAY_PORT, FRONTEND_URL and
    TRUSTED_PROXIES.

    As root its workers run as the account that PostgreSQL runs as.
    """

    def __init__(self, folder, settings):
        self.settings = {
            **settings,
            # Demo accounts are nothing for other machines.
            "FRONTEND_HOST": "127.0.0.1",
            "FRONTEND_FOLDER": "html",
            "GATEWAY_HOST": "127.0.0.1",
            # Never asked, as the gateway's address is no name.
            "NGINX_LOCAL_RESOLVERS": "127.0.0.1",
        }
        self.account = account()
        if self.account and not can_reach(self.account, folder.parent) and not folder.is_symlink():
            # Of a time when the account could reach it.
            shutil.rmtree(folder, ignore_errors=True)
        self.folder = reachable(folder, self.account)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The workers pass through.
        self.folder.chmod(0o711)

    def prepare(self, build):
        self.copy(build)
        (self.folder / "storefront.conf").write_text(filled_in(self.settings))
        (self.folder / "nginx.conf").write_text(self.main_configuration())
        done = subprocess.run([*self.command(), "-t", "-q"], cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise CannotStart(f"nginx refuses the storefront's configuration: {done.stderr.strip()}")

    def copy(self, build):
        """Copies the build, unless it is there already: the workers can read it, and no later build disturbs it."""
        copied, html = self.folder / "copied", self.folder / "html"
        with npm.alone(build.parent):
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


def filled_in(settings):
    """frontend/nginx.conf, as the image's entrypoint leaves it."""
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
    """The file that nginx brings with it, beside its own nginx.conf."""
    built = subprocess.run([find_nginx(), "-V"], capture_output=True, text=True).stderr
    return Path(re.search(r"--conf-path=(\S+)", built)[1]).with_name("mime.types")
