"""Databases for the services that a test starts, and none for the others."""


class DatabaseUris(dict):
    """DB_URIS of a configuration: `make(service)` makes the database of each service that is asked for."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def __missing__(self, service):
        self[service] = self.make(service)
        return self[service]

    def get(self, service, default=None):
        return self[service]

    def __bool__(self):
        return True
