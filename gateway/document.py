"""The parts of the OpenAPI document that flask-smorest does not derive from schemas and views.

Patterns are ECMAScript regular expressions. Some rules fit into no schema: common passwords, order lines that
contradict each other. tests/gateway/schemathesis.toml lists the routes that have such rules.
"""

from typing import Any

from apispec import APISpec, BasePlugin
from apispec.ext.marshmallow import OpenAPIConverter
from marshmallow import fields

from contracts.names import FORMATS
from contracts.types import CONTROLS, Line, Name
from gateway.cookies import REFRESH, SIGN_IN

SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    REFRESH: {"type": "apiKey", "in": "cookie", "name": REFRESH, "description": "a session's refresh token"},
    SIGN_IN: {
        "type": "apiKey",
        "in": "cookie",
        "name": SIGN_IN,
        "description": f"`{SIGN_IN}_` and a hash of the state: each sign-in has its own cookie",
    },
}
POLICY = r'"[a-z]+";q=[0-9]+;w=[0-9]+'
REMAINING = r'"[a-z]+";r=[0-9]+;t=[0-9]+'
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": {
        "description": "the id that came with the request, or a generated one",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "Cache-Control": {"required": True, "schema": {"type": "string", "enum": ["no-store", "no-cache"]}},
    "RateLimit-Policy": {
        "description": "the limits of this request, each with its quota and its window in seconds",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{POLICY}(, {POLICY})*$"},
    },
    "RateLimit": {
        "description": "the remaining quota, and the seconds until the window ends; absent without a count",
        "schema": {"type": "string", "pattern": f"^{REMAINING}(, {REMAINING})*$"},
    },
    "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"required": True, "schema": {"type": "string", "pattern": "^Bearer"}},
    "ETag": {
        "description": '`"<version>-<hash>"`',
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9]+-[0-9a-f]+"$'},
    },
    "Location": {"required": True, "schema": {"type": "string"}},
    "Link": {
        "description": "the pages `first`, `prev`, `next` and `last`, where they exist (RFC 8288)",
        "required": True,
        "schema": {"type": "string", "pattern": '^<.+>; rel="first"'},
    },
    "X-Total-Count": {
        "description": "the number of items in the whole list",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "Set-Cookie": {"description": f"`{REFRESH}`, or `{SIGN_IN}_…`", "schema": {"type": "string"}},
}
# The HTTP server sends these before the request is counted.
SERVER_REFUSALS = {414: "request-uri-too-long", 431: "request-header-fields-too-large"}
COMMON_HEADERS = ("X-Request-ID", "Cache-Control", "RateLimit-Policy", "RateLimit")
HEADERS_BY_STATUS = {
    401: ("WWW-Authenticate",),
    409: ("Retry-After",),
    429: ("Retry-After",),
    502: ("Retry-After",),
    503: ("Retry-After",),
    504: ("Retry-After",),
}


def response_headers(status: int | str, *more: str) -> dict[str, str]:
    """The headers of answers with this status, for an OpenAPI response object."""
    if status in SERVER_REFUSALS:
        return {name: name for name in ("X-Request-ID", "Cache-Control")}
    return {name: name for name in (*COMMON_HEADERS, *HEADERS_BY_STATUS.get(int(status), ()), *more)}


def extend_spec(spec: APISpec, converter: OpenAPIConverter) -> None:
    """Add security schemes and headers to a new spec, and our rules to the converter of its schemas."""
    for name, scheme in SECURITY_SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    for name, header in HEADERS.items():
        spec.components.header(name, header)
    converter.add_attribute_function(field2own_pattern)
    converter.add_attribute_function(field2nullable_view)
    converter.add_parameter_attribute_function(field2query_value)


class MetaKeywords(BasePlugin):
    """Copies a schema's `Meta.keywords`: rules that JSON Schema can express and marshmallow cannot."""

    def schema_helper(self, name: str, definition: dict[str, Any], schema: Any = None, **kwargs: Any) -> dict[str, Any]:
        return getattr(schema.Meta, "keywords", {})


def field2own_pattern(self: Any, field: fields.Field[Any], ret: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    pattern = ret.get("pattern") or getattr(field, "pattern", None)
    if pattern is None and isinstance(field, Line):
        invisible = CONTROLS + (FORMATS if isinstance(field, Name) else "")
        pattern = _line_pattern(ret.get("minLength", 0), ret.get("maxLength"), invisible)
    return {"pattern": pattern} if pattern else {}


def field2nullable_view(self: Any, field: fields.Field[Any], ret: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Describe a nullable view as the view or null. apispec alone would allow any object."""
    views = [schema for schema in ret.get("anyOf", ()) if "$ref" in schema]
    return {"anyOf": [*views, {"type": "object", "nullable": True, "enum": [None]}]} if views else {}


def _line_pattern(min_length: int, max_length: int | None, invisible: str) -> str:
    """A pattern for a text of that length once trimmed, without invisible characters."""
    inside, end = f"[^{invisible}]", rf"[^\s{invisible}]"
    most = "" if max_length is None else max_length - 2
    text = f"{end}{inside}{{{max(0, min_length - 2)},{most}}}{end}"
    if min_length < 2:
        text = f"(?:{end}|{text})"
    if min_length < 1:
        text += "?"
    return rf"^\s*{text}\s*$"


def field2query_value(self: Any, field: fields.Field[Any], ret: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """A query parameter is never null, and an empty text counts as not given."""
    schema = ret["schema"]
    if schema.pop("nullable", False):
        del schema["default"]
        if "enum" in schema:
            schema["enum"].remove(None)
    return {"allowEmptyValue": True} if isinstance(field, fields.String) else {}
