"""The OpenAPI document, read without a running shop."""

from dataclasses import dataclass

from dev.client import document


@dataclass(frozen=True)
class Operation:
    """access: its access level. admin_when: the (parameter, value) of a query that only admins may send, or None."""

    method: str
    path: str
    described: dict
    document: dict

    def __str__(self):
        return f"{self.method} {self.path}"

    @property
    def access(self):
        return self.described["x-access"]

    @property
    def admin_when(self):
        return tuple(self.described["x-admin-when"]) if "x-admin-when" in self.described else None

    @property
    def security(self):
        return [way for way in self.described["security"] if "bearer" in way]

    @property
    def body_schema(self):
        if "requestBody" not in self.described:
            return None
        reference = self.described["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        return self.document["components"]["schemas"][reference.rpartition("/")[2]]

    @property
    def example_body(self):
        """The last value of each enum, else true; None without a body."""
        if self.body_schema is None:
            return None
        return {
            name: field["enum"][-1] if "enum" in field else True
            for name, field in self.body_schema["properties"].items()
        }

    def path_with(self, value):
        """The path with this value for every parameter."""
        pieces = self.path.split("{")
        return pieces[0] + "".join(f"{value}{piece.partition('}')[2]}" for piece in pieces[1:])


def operations():
    described = document()
    for path, entry in described["paths"].items():
        for method, operation in entry.items():
            if method != "parameters":
                yield Operation(method.upper(), path, operation, described)
