"""The sign-in provider that `make run` starts, unless another one is given."""

import pytest
import requests

from dev.sign_in_provider import ACCOUNTS
from nameko_reliable.testing.waiting import wait_for

pytestmark = pytest.mark.server


def is_up(url):
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def test_the_provider_has_the_issuer_that_the_services_expect(shop):
    issuer = shop.settings["OIDC_ISSUER"]
    wait_for(lambda: is_up(issuer))

    document = requests.get(f"{issuer}/.well-known/openid-configuration", timeout=5).json()

    assert document["issuer"] == issuer
    assert issuer in shop.output()


def test_the_provider_offers_each_of_its_accounts_as_a_button(shop):
    issuer = shop.settings["OIDC_ISSUER"]
    wait_for(lambda: is_up(issuer))
    query = {
        "response_type": "code",
        "client_id": "forage-local",
        "redirect_uri": "http://localhost/",
        "scope": "openid",
    }

    page = requests.get(f"{issuer}/oauth2/authorize", params=query, timeout=5).text

    for name in ACCOUNTS:
        assert f'name="sub" value="{name}"' in page


def test_the_provider_has_no_debugger_console(shop):
    issuer = shop.settings["OIDC_ISSUER"]
    wait_for(lambda: is_up(issuer))

    assert requests.get(f"{issuer}/console", timeout=5).status_code == 404
