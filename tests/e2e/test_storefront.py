"""The storefront as `make run` and `make dev` serve it."""

import re
from contextlib import closing

import psutil
import pytest
import requests
import websocket

from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.processes import is_alive

from .conftest import running_shop
from .test_sign_in import is_up

pytestmark = pytest.mark.server


def test_make_run_prints_the_address_of_the_storefront_first(shop):
    printed = shop.output().partition("Forage is up after")[2]

    assert re.search(r"https?://\S+", printed)[0] == shop.storefront
    page = requests.get(shop.storefront, timeout=10)
    assert '<div id="app">' in page.text
    assert page.headers["Cache-Control"] == "no-cache"


def test_scripts_are_compressed_and_cached_for_ever(shop):
    page = requests.get(shop.storefront, timeout=10).text

    scripts = [
        requests.get(shop.storefront + path, headers={"Accept-Encoding": "gzip"}, stream=True, timeout=10)
        for path in re.findall(r'(?:src|href)="(/assets/[^"]+\.js)"', page)
    ]

    assert scripts
    for script in scripts:
        assert script.status_code == 200
        assert script.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert any(script.headers.get("Content-Encoding") == "gzip" for script in scripts)


def test_signing_in_at_the_provider_leads_back_to_the_storefront(shop):
    wait_for(lambda: is_up(shop.settings["OIDC_ISSUER"]))
    browser = requests.Session()

    to_provider = browser.get(f"{shop.storefront}/api/auth/google", allow_redirects=False, timeout=10)
    back = browser.post(to_provider.headers["Location"], data={"sub": "cleo-is-new"}, allow_redirects=False, timeout=10)
    arrived = browser.get(back.headers["Location"], allow_redirects=False, timeout=10)

    assert back.headers["Location"].startswith(f"{shop.storefront}/api/auth/google/callback?")
    assert arrived.headers["Location"].startswith(f"{shop.storefront}/auth/callback#token=")
    refresh = browser.post(f"{shop.storefront}/api/auth/refresh", headers={"Origin": shop.storefront}, timeout=10)
    assert refresh.status_code == 200, refresh.text


def nginx_of(shop):
    """nginx's main process and its workers."""
    master = psutil.Process(int((shop.folder / "nginx" / "nginx.pid").read_text()))
    return [master, *master.children()]


def test_a_killed_nginx_is_back_within_5_seconds(shop):
    killed = nginx_of(shop)

    killed[0].kill()

    wait_for(lambda: not any(map(is_alive, killed)), seconds=5)
    wait_for(lambda: is_up(f"{shop.storefront}/api/livez"), seconds=5)
    wait_for(lambda: "frontend was killed by signal 9; starting it again" in shop.output())


def test_make_dev_serves_the_sources_and_proxies_to_the_gateway(local_folder):
    with running_shop(local_folder / "dev-shop", "dev") as shop:
        page = requests.get(f"{shop.storefront}/orders/3", headers={"Accept": "text/html"}, timeout=30)
        live = requests.get(f"{shop.storefront}/api/livez", timeout=10)
        address = shop.storefront.replace("http", "ws") + "/ws/notifications"
        with closing(websocket.create_connection(address, origin=shop.storefront, timeout=10)) as connection:
            greeting = connection.recv()

    assert "/@vite/client" in page.text and "/src/main.ts" in page.text
    assert live.status_code == 200
    assert '"connected"' in greeting
