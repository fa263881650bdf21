"""The storefront's nginx as `make run` starts it, with the configuration that its image has, before a running shop."""

import socket
import subprocess
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import pytest

from dev import npm
from dev.frontend import BUILT_FROM
from dev.nginx import Nginx
from gateway import Gateway
from nameko_reliable.testing.servers import Server, free_port
from services.products import Products
from services.users import Users
from tests.shop import running_shop

PAGE = "<!doctype html><title>Forage</title><script src=/assets/index-C0FFEE.js></script>\n" + "<!-- moss -->\n" * 100
SCRIPT = "console.log('chanterelles in butter');\n" * 200
PICTURE = "<svg xmlns='http://www.w3.org/2000/svg'><circle r='1'/></svg>\n" * 50
SETTINGS = {
    "FRONTEND_PORT": "8080",
    "GATEWAY_PORT": "3000",
    "FRONTEND_URL": "http://shop.example",
    "TRUSTED_PROXIES": "",
}
numbers = count(1)


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
    (folder / BUILT_FROM).write_text("sources")
    subprocess.run(["node", npm.FRONTEND / "compress.js", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def serve(dist, local_folder):
    """`serve(gateway_port)` is a context with one more nginx: `url`, `ws_url`, `port`, `host`, `server`.

    edits: what to replace in its configuration. folder: where it lives. Other keywords are settings.
    """

    @contextmanager
    def serve(gateway_port, edits=None, folder=None, **settings):
        port = free_port()
        own = {"FRONTEND_PORT": str(port), "GATEWAY_PORT": str(gateway_port)}
        nginx = Nginx(folder or local_folder / f"nginx-{next(numbers)}", {**SETTINGS, **own, **settings})
        nginx.prepare(dist)
        edit(nginx.folder / "storefront.conf", edits or {})
        server = Server(
            "nginx", nginx.folder, nginx.command(), is_ready=lambda: answers(port), cwd=nginx.folder
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


def edit(path, edits):
    text = path.read_text()
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture(scope="session")
def site(serve, shop):
    """One before the shop, for the tests that only ask it something."""
    with serve(shop.port) as site:
        yield site


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
