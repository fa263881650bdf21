"""HTTP clients with another source address."""

import requests
from requests.adapters import HTTPAdapter


def client_at(address):
    """A `requests` session that connects from an address of this machine, like 127.0.0.2, as another client."""

    class SourceAddress(HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            super().init_poolmanager(*args, source_address=(address, 0), **kwargs)

    session = requests.Session()
    session.mount("http://", SourceAddress())
    return session
