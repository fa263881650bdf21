"""The storefront's nginx, started like `make run` does, with the configuration of its image, in front of a shop."""

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
    """Users, products, and a gateway that trusts the proxies on this machine: `port` and `rpc`."""
    port = free_port()
    settings = {"GATEWAY_PORT": str(port), "TRUSTED_PROXIES": "127.0.0.1", "FRONTEND_URL": "http://shop.example"}
    with running_shop(brokers, databases, smtp_server, Users, Products, Gateway, **settings) as shop:
        shop.port = port
        yield shop


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """A folder like a build of the storefront."""
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
    """`with serve(gateway_port) as site:` runs another nginx: `url`, `ws_url`, `port`, `host`, `server`.

    edits: {old: new}, replaced in its configuration. folder: for its files. Other keywords are settings.
    """

    @contextmanager
    def serve(gateway_port, edits=None, folder=None, **settings):
        port = free_port()
        own = {"FRONTEND_PORT": str(port), "GATEWAY_PORT": str(gateway_port)}
        nginx = Nginx(folder or local_folder / f"nginx-{next(numbers)}", {**SETTINGS, **own, **settings})
        nginx.prepare(dist)
        edit(nginx.folder / "storefront.conf", edits or {})
        server = Server(
            "nginx", nginx.folder, nginx.command(), is_ready=lambda: accepts_connections(port), cwd=nginx.folder
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
    """An nginx in front of the shop, for tests that only send requests."""
    with serve(shop.port) as site:
        yield site


def accepts_connections(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
