"""The storefront's two servers: ours of `make run`, and nginx as it runs in Docker."""

import os
import re
import shutil
import socket
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from dev import npm
from dev.programs import find_nginx
from gateway import Gateway
from nameko_reliable.testing.servers import Server, free_port
from services.products import Products
from services.users import Users
from tests.shop import running_shop

PAGE = "<!doctype html><title>Forage</title><script src=/assets/index-C0FFEE.js></script>\n" + "<!-- moss -->\n" * 100
SCRIPT = "console.log('chanterelles in butter');\n" * 200
PICTURE = "<svg xmlns='http://www.w3.org/2000/svg'><circle r='1'/></svg>\n" * 50
NGINX = """
daemon off;
# One process, which runs as who started it and may read the folder.
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{}}
http {{
    include /etc/nginx/mime.types;
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


@pytest.fixture(scope="session")
def shop(brokers, databases, smtp_server):
    """Users, products and a gateway that trusts the servers before it: `port`, and `rpc`."""
    port = free_port()
    settings = {"GATEWAY_PORT": str(port), "TRUSTED_PROXIES": "127.0.0.1", "FRONTEND_URL": "http://shop.example"}
    with running_shop(brokers, databases, smtp_server, Users, Products, Gateway, **settings) as shop:
        shop.port = port
        yield shop


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """A folder as the build leaves it."""
    npm.install(npm.FRONTEND, "the frontend")
    folder = tmp_path_factory.mktemp("dist")
    (folder / "assets").mkdir()
    (folder / "pictures").mkdir()
    (folder / "index.html").write_text(PAGE)
    (folder / "favicon.svg").write_text(PICTURE)
    (folder / "assets" / "index-C0FFEE.js").write_text(SCRIPT)
    (folder / "assets" / "index-C0FFEE.css").write_text("body { color: #432 }\n" * 100)
    (folder / "pictures" / "morel.svg").write_text(PICTURE)
    subprocess.run(["node", npm.FRONTEND / "compress.js", folder], check=True)
    return folder


def node(folder, dist, environment, edits):
    return [shutil.which("node"), str(npm.FRONTEND / "server.js"), str(dist)]


def nginx(folder, dist, environment, edits):
    """As the image fills in its templates. edits: what else to replace in nginx.conf."""
    script = '. "$0" && printf %s "$REAL_IP_FROM"'
    real_ip_from = subprocess.run(
        ["sh", "-c", script, npm.FRONTEND / "trusted-proxies.envsh"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    environment["REAL_IP_FROM"] = real_ip_from.stdout
    template = (npm.FRONTEND / "nginx.conf").read_text()
    for old, new in {**edits, "/usr/share/nginx/html": str(dist)}.items():
        assert old in template
        template = template.replace(old, new)
    site = re.sub(r"\$\{([A-Z_]+)\}", lambda name: environment[name[1]], template)
    (folder / "site.conf").write_text(site)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    return [find_nginx(), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx-error.log")]


@pytest.fixture(scope="session", params=[node, nginx], ids=["server.js", "nginx"])
def serve(request, dist, tmp_path_factory):
    """`serve(gateway_port)` is a context with one more server: `url`, `ws_url`, `port`, `host`, `server`."""

    @contextmanager
    def serve(gateway_port, edits=None, **settings):
        folder = tmp_path_factory.mktemp("server")
        port = free_port()
        environment = {
            **os.environ,
            "FRONTEND_PORT": str(port),
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(gateway_port),
            "FRONTEND_URL": "http://shop.example",
            "NGINX_LOCAL_RESOLVERS": "127.0.0.1",
            **settings,
        }
        server = Server(
            request.param.__name__,
            folder,
            request.param(folder, dist, environment, edits or {}),
            environment,
            is_ready=lambda: answers(port),
        ).start()
        try:
            server.wait_until_ready()
            host = f"127.0.0.1:{port}"
            yield SimpleNamespace(
                url=f"http://{host}",
                ws_url=f"ws://{host}/ws/notifications",
                host=host,
                port=port,
                server=server,
            )
        finally:
            server.stop()

    return serve


@pytest.fixture(scope="session")
def site(serve, shop):
    """One before the shop, for the tests that only ask it something."""
    with serve(shop.port) as site:
        yield site


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
