"""Users with accounts, who send requests to any gateway of the shop."""

import re
from itertools import cycle

import requests

from nameko_reliable.testing.waiting import wait_for
from tests.factories import an_account
from tests.infrastructure.feed import Feed


class Person:
    """`ada.get(gateway, "/orders")` is a `requests` response. gateway: its address."""

    def __init__(self, account):
        self.account, self.email = account, account["email"]
        self.browser = requests.Session()
        self.token = None

    def request(self, gateway, method, path, body=None, **headers):
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.browser.request(
            method, gateway + path, json=body, headers=headers, timeout=15, allow_redirects=False
        )

    def get(self, gateway, path, **headers):
        return self.request(gateway, "GET", path, **headers)

    def post(self, gateway, path, body=None, **headers):
        return self.request(gateway, "POST", path, body, **headers)

    def put(self, gateway, path, body=None, **headers):
        return self.request(gateway, "PUT", path, body, **headers)

    def patch(self, gateway, path, body=None, **headers):
        return self.request(gateway, "PATCH", path, body, **headers)

    def delete(self, gateway, path, **headers):
        return self.request(gateway, "DELETE", path, **headers)

    def log_in(self, gateway):
        self._keep_token(
            self.post(gateway, "/users/login", {name: self.account[name] for name in ("email", "password")})
        )

    def refresh(self, gateway):
        """Refresh the session of the login, which may have been at another gateway."""
        self._keep_token(self.post(gateway, "/auth/refresh"))

    def _keep_token(self, answer):
        assert answer.status_code == 200, answer.text
        self.token = answer.json()["access_token"]

    def order(self, gateway, product, quantity=1, **headers):
        items = [{"product_id": product["id"], "quantity": quantity, "unit_price": product["price"]}]
        return self.post(gateway, "/orders", {"items": items}, **headers)

    def listen(self, gateway):
        """A Feed that is authenticated as this person."""
        feed = Feed(f"{gateway.replace('http', 'ws')}/ws/notifications")
        feed.send(type="authenticate", token=self.token)
        feed.receive_until("authenticated")
        return feed


def open_account(smtp, *gateways):
    """A person who has registered, proven the address and logged in, each step at the next gateway."""
    gateways, person = cycle(gateways), Person(an_account())
    registered = person.post(next(gateways), "/users/register", person.account)
    assert registered.status_code == 201, registered.text
    proven = person.post(
        next(gateways), "/users/verify-email", {"token": mailed_token(smtp, person, "user.registered")}
    )
    assert proven.status_code == 204, proven.text
    person.log_in(next(gateways))
    return person


def mails_about(smtp, person, event_name):
    return [mail for mail in smtp.messages(to=person.email) if mail["X-Forage-Event"] == event_name]


def mailed_token(smtp, person, event_name):
    [mail] = wait_for(lambda: mails_about(smtp, person, event_name))
    return re.search(r"#token=(\S+)", mail.get_body(("plain",)).get_content())[1]
