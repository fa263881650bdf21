"""Clients that come from another address."""

import requests
from requests.adapters import HTTPAdapter


def client_at(address):
    """A `requests` session from one of this machine's own addresses, like 127.0.0.2: to a server, another machine."""

    class From(HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            super().init_poolmanager(*args, source_address=(address, 0), **kwargs)

    session = requests.Session()
    session.mount("http://", From())
    return session
