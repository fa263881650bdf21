"""flask-smorest with strict parsing and problem responses.

JSON is read as the RFCs require: UTF-8, no duplicate keys, no NaN, no number that a float cannot hold. Unknown,
repeated and undecodable query parameters are refused, also on routes without parameters. Every operation in the
OpenAPI document names its access and its problems, which come from the table of gateway/errors.py.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cached_property, wraps
from typing import Any, NoReturn
from urllib.parse import parse_qsl

import flask_smorest
from flask import Flask, Response, current_app, request
from marshmallow import RAISE, Schema, ValidationError
from webargs.flaskparser import FlaskParser
from werkzeug import exceptions as http
from werkzeug.routing import BaseConverter

from contracts.types import MAX_BIGINT, InvalidInput, Money, Time
from gateway.auth import ADMIN, PUBLIC, ViewFunction
from gateway.document import SERVER_REFUSALS, MetaKeywords, extend_spec, response_headers
from gateway.errors import (
    PROBLEM_JSON,
    AccessDenied,
    ForeignOrigin,
    MalformedRequest,
    Overloaded,
    RateLimited,
    Unauthenticated,
    UnsupportedBody,
    problem_of,
    problem_response,
)
from gateway.schemas import Moment, ProblemView
from nameko_reliable.errors import RpcTimeout, ServiceUnavailable

MAX_BODY_BYTES = 1024 * 1024
# A schema takes about 20 µs for each value, and writes a message for each invalid one.
MAX_JSON_VALUES = 2000
# No body of the API is as deep. A much deeper one could not be encoded again for a service.
MAX_JSON_DEPTH = 20
MAX_DIGITS = 400
MAX_QUERY_PARAMETERS = 50
JSON = "application/json"


def read_json(body: bytes) -> Any:
    """The value of a JSON text. Raises MalformedRequest."""
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_without_duplicate_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
    except UnicodeDecodeError:
        raise MalformedRequest("The body is not UTF-8.") from None
    except RecursionError:
        raise MalformedRequest("The body is nested too deeply.") from None
    except ValueError as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from None


def _without_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("an object has the same key twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _short_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(digits)


def _check_size(value: Any) -> None:
    """Raise InvalidInput when lists and objects hold too many values, MalformedRequest when they are too deep."""
    count, unchecked = 0, [(value, 1)]
    while unchecked:
        container, depth = unchecked.pop()
        if isinstance(container, (dict, list)):
            count += len(container)
            if count > MAX_JSON_VALUES:
                raise InvalidInput({"_schema": [f"More than {MAX_JSON_VALUES} values."]})
            if depth > MAX_JSON_DEPTH:
                raise MalformedRequest("The body is nested too deeply.")
            values = container.values() if isinstance(container, dict) else container
            unchecked.extend((each, depth + 1) for each in values)


def read_query(query_string: bytes) -> dict[str, str]:
    """{name: value} of a query string's bytes. Raises MalformedRequest, or InvalidInput for a repeated name."""
    try:
        pairs = parse_qsl(
            query_string.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_PARAMETERS
        )
    except UnicodeDecodeError:
        raise MalformedRequest("The query string is not UTF-8.") from None
    except ValueError:
        raise MalformedRequest(f"The query string has more than {MAX_QUERY_PARAMETERS} parameters.") from None
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidInput({name: ["Given more than once."] for name in values if names.count(name) > 1})
    return values


class StrictParser(FlaskParser):
    DEFAULT_UNKNOWN_BY_LOCATION = {"json": RAISE, "query": RAISE}

    def load_json(self, request: Any, schema: Schema) -> Any:
        if request.mimetype != JSON:
            raise UnsupportedBody
        body = request.get_data()
        if len(body) > MAX_BODY_BYTES:
            raise http.RequestEntityTooLarge
        value = read_json(body)
        _check_size(value)
        return value

    def load_querystring(self, request: Any, schema: Schema) -> Any:
        return read_query(request.query_string)

    def handle_error(
        self, error: ValidationError, request: Any, schema: Schema, *, error_status_code: Any, error_headers: Any
    ) -> NoReturn:
        # webargs puts the location, "json" or "query", on top.
        (errors,) = error.normalized_messages().values()
        raise InvalidInput(errors) from None


def refuse_unknown_parameters(view: Any) -> None:
    """Raise InvalidInput for a query parameter at a route that takes none."""
    if request.query_string and not _takes_query(view):
        unknown = read_query(request.query_string)
        if unknown:
            raise InvalidInput({name: ["Unknown field."] for name in unknown})


@functools.cache
def _takes_query(view: Any) -> bool:
    parameters = getattr(view, "_apidoc", {}).get("arguments", {}).get("parameters", ())
    return any(parameter["in"] == "query" for parameter in parameters)


class IdConverter(BaseConverter):
    """An id in a path: digits without leading zeros. An id beyond a bigint becomes 0, which no row has."""

    regex = "0|[1-9][0-9]*"

    def to_python(self, value: str) -> int:
        return int(value) if len(value) <= len(str(MAX_BIGINT)) else 0


class Blueprint(flask_smorest.Blueprint):
    """calls_services: whether its views call services, which may be unavailable."""

    ARGUMENTS_PARSER = StrictParser()

    def __init__(self, *args: Any, calls_services: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls_services = calls_services
        self._prepare_doc_cbks.append(self._prepare_access_doc)

    def arguments(self, schema: Schema | type[Schema], **kwargs: Any) -> Callable[..., Callable[..., Any]]:
        """Parse arguments with one instance of the schema. webargs would make an instance for each request."""
        return super().arguments(schema() if isinstance(schema, type) else schema, **kwargs)

    def body(self, schema: Schema) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Document a body, and pass its members to the view unchanged. The service validates their values.

        Only the names are checked here: all required members and no unknown ones. So no member can replace an
        argument that the gateway itself passes to the service.
        """
        names = {field.data_key or name for name, field in schema.load_fields.items()}
        required = {field.data_key or name for name, field in schema.load_fields.items() if field.required}
        required = set() if schema.partial else required

        def decorator(view: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(view)
            def checked(*args: Any, **kwargs: Any) -> Any:
                members = self.ARGUMENTS_PARSER.load_json(request, schema)
                if not isinstance(members, dict) or members.keys() - names or required - members.keys():
                    raise InvalidInput(schema.validate(members))
                return view(members, *args, **kwargs)

            notes = deepcopy(getattr(view, "_apidoc", {}))
            parameters = notes.setdefault("arguments", {}).setdefault("parameters", [])
            parameters.append({"in": "json", "required": True, "schema": schema})
            checked._apidoc = notes  # type: ignore[attr-defined]
            return checked

        return decorator

    def response(self, status_code: int, schema: Any = None, **kwargs: Any) -> Callable[..., Callable[..., Any]]:
        """Document an answer. The view's result is sent unchanged: services answer in the schema's shape."""
        document = super().response(status_code, schema, **kwargs)

        def decorator(view: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(view)
            def written(*args: Any, **kwargs: Any) -> Response:
                answer = view(*args, **kwargs)
                response = current_app.make_response("" if answer is None else answer)
                if not isinstance(answer, (tuple, Response)):
                    response.status_code = status_code
                return response

            return document(written)

        return decorator

    @staticmethod
    def request_header(header: dict[str, Any]) -> Callable[[ViewFunction], ViewFunction]:
        """Document a request header, an OpenAPI parameter object. The view itself reads it."""
        return _with_doc(header=header)

    @staticmethod
    def request_cookie(cookie: str, required: bool) -> Callable[[ViewFunction], ViewFunction]:
        """Document a cookie. required: whether the request is refused without it."""
        return _with_doc(cookie=(cookie, required))

    @staticmethod
    def problems(*error_classes: type[Exception]) -> Callable[[ViewFunction], ViewFunction]:
        """Document the errors that a view may raise besides those of every view."""
        return _with_doc(problems=error_classes)

    def _store_endpoint_docs(self, endpoint: str, view: Any, parameters: Any, tags: Any, **options: Any) -> None:
        marks = {name: getattr(view, name, None) for name in ("access", "admin_when", "with_cookie")}
        view._apidoc = {**getattr(view, "_apidoc", {}), **marks}
        super()._store_endpoint_docs(endpoint, view, parameters, tags, **options)

    def _prepare_access_doc(self, doc: dict[str, Any], doc_info: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        access, admin_when = doc_info["access"], doc_info["admin_when"]
        if "header" in doc_info:
            doc.setdefault("parameters", []).append({"in": "header", **doc_info["header"]})
        doc["security"] = _security_of(access, admin_when, *doc_info.get("cookie", ()))
        doc["x-access"] = access
        if admin_when:
            doc["x-admin-when"] = admin_when
        note = f"Access: {access}." + (f" {'='.join(admin_when)}: admin." if admin_when else "")
        doc_info["docstring"]["description"] = "\n\n".join(
            filter(None, [doc_info["docstring"].get("description"), note])
        )
        types_by_status = {status: {problem_type} for status, problem_type in SERVER_REFUSALS.items()}
        for error_class in self._possible_errors(doc, doc_info):
            problem = problem_of(error_class)
            types_by_status.setdefault(problem.status, set()).add(problem.type)
        # Our problems replace flask-smorest's own errors, which are strings here.
        responses = doc["responses"] = {
            status: {**response, "headers": response_headers(status, *response.get("headers", ()))}
            for status, response in doc["responses"].items()
            if not isinstance(response, str)
        }
        for status, types in sorted(types_by_status.items()):
            responses[str(status)] = {
                "description": ", ".join(f"`{problem_type}`" for problem_type in sorted(types)),
                "headers": response_headers(status),
                "content": {PROBLEM_JSON: {"schema": ProblemView}},
            }
        return doc

    def _possible_errors(self, doc: dict[str, Any], doc_info: dict[str, Any]) -> Iterator[type[Exception]]:
        if doc_info["access"] != PUBLIC or doc_info["admin_when"]:
            yield Unauthenticated
        if doc_info["access"] == ADMIN or doc_info["admin_when"]:
            yield AccessDenied
        if doc_info["with_cookie"]:
            yield ForeignOrigin
        yield MalformedRequest
        yield InvalidInput
        yield RateLimited
        yield Overloaded
        if "requestBody" in doc:
            yield from (UnsupportedBody, http.RequestEntityTooLarge)
        yield from doc_info.get("problems", ())
        if self.calls_services:
            yield from (ServiceUnavailable, RpcTimeout)
        yield Exception


def _with_doc(**notes: Any) -> Callable[[ViewFunction], ViewFunction]:
    def decorator(view: ViewFunction) -> ViewFunction:
        view._apidoc = {**getattr(view, "_apidoc", {}), **notes}  # type: ignore[attr-defined]
        return view

    return decorator


def _security_of(
    access: str, admin_when: tuple[str, str] | None, cookie: str | None = None, required: bool = False
) -> list[dict[str, list[str]]]:
    """An operation's `security`: a list of alternatives, each with the credentials that it needs together."""
    alternatives: list[dict[str, list[str]]] = [{}] if access == PUBLIC else [{"bearer": []}]
    if access == PUBLIC and admin_when:
        alternatives.append({"bearer": []})
    if cookie:
        with_cookie = [{**credentials, cookie: []} for credentials in alternatives]
        alternatives = with_cookie if required else alternatives + with_cookie
    return alternatives if any(alternatives) else []


class Api(flask_smorest.Api):
    """The routes, and the OpenAPI document that describes them."""

    ERROR_SCHEMA = ProblemView

    def __init__(self, app: Flask) -> None:
        self._blueprints: list[Blueprint] = []
        super().__init__(app)

    def register_blueprint(self, blp: Blueprint) -> None:
        """Register its routes. `document` describes them: few gateways are ever asked for it."""
        self._app.register_blueprint(blp)
        self._blueprints.append(blp)

    @cached_property
    def document(self) -> bytes:
        """The OpenAPI document. It does not change while the process runs."""
        for blp in self._blueprints:
            blp.register_views_in_doc(self, self._app, self.spec, name=blp.name, parameters=None)
            self.spec.tag({"name": blp.name, "description": blp.description})
        # Relative to the document's own address, as a proxy may add a path prefix.
        self.spec.options["servers"] = [{"url": "."}]
        return json.dumps(self.spec.to_dict(), indent=2).encode()

    def init_app(self, app: Flask, **kwargs: Any) -> None:
        super().init_app(app, spec_kwargs={"extra_plugins": [MetaKeywords()]}, **kwargs)
        extend_spec(self.spec, self.ma_plugin.converter)
        self.register_field(Money, "string", "decimal")
        self.register_field(Moment, "string", "date-time")
        self.register_field(Time, "string", "date-time")
        self.register_converter(IdConverter, lambda converter: {"type": "integer", "minimum": 1, "maximum": MAX_BIGINT})

    def _register_error_handlers(self) -> None:
        self._app.register_error_handler(Exception, problem_response)
