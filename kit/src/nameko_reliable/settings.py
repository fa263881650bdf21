"""Settings that are checked together, once, at start. Bad ones end the process with one sentence each.

    class Bakery:
        name = "bakery"
        settings = Settings(BakerySettings, needs=["DB_URIS.bakery"])

The schema is a marshmallow Schema with a field for each setting. An error message of a field is the rest of a sentence
that begins with the setting's name: "must be a number." The loaded values replace the container's configuration, so
other extensions need not check them.
"""

import os
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

from marshmallow import Schema, ValidationError
from nameko.extensions import DependencyProvider

# Imported for its effect. Code that opens a connection imports this module first, to read the address.
import nameko_reliable.names  # noqa: F401

# A setting, or a pair: the first is needed when the second is set.
Need: TypeAlias = str | tuple[str, str]
Forbidden: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, str]], Iterable[str]]


class Settings(DependencyProvider):
    """Injects the loaded values.

    needs: the settings that this service cannot run without, `SECTION.key` for one in a section. A pair (A, B) means
    that A is needed when B is set.
    forbidden: called with the values and the process's environment variables; returns a sentence for each setting that
    ENVIRONMENT=production forbids.
    """

    def __init__(self, schema: type[Schema], forbidden: Forbidden | None = None, needs: Iterable[Need] = ()) -> None:
        self.schema, self.forbidden, self.needs = schema, forbidden, needs

    def bind(self, container: Any, attr_name: str) -> Any:
        # Nameko binds all extensions before it sets any up, so each `setup` sees checked values.
        container.config = checked(self.schema(), container.config, self.needs, self.forbidden)
        return super().bind(container, attr_name)

    def get_dependency(self, worker_ctx: Any) -> Any:
        return self.container.config


def checked(
    schema: Schema, config: Mapping[str, Any], needs: Iterable[Need] = (), forbidden: Forbidden | None = None
) -> dict[str, Any]:
    """The values that the schema loads from the configuration. Raises SystemExit with a sentence for each fault."""
    missing = _missing(schema, config, needs)
    values: dict[str, Any]
    try:
        values, faults = schema.load(config), {}
    except ValidationError as error:
        values, faults = cast(dict[str, Any], error.valid_data), error.normalized_messages()
    sentences = {**missing, **dict(_sentences(faults))}
    lines = [f"{name} {rest}" for name, rest in sentences.items()]
    if forbidden and values.get("ENVIRONMENT") == "production":
        # A setting gets one sentence: its fault comes before what production forbids.
        reasons = [each for each in forbidden(values, os.environ) if each.partition(" ")[0] not in sentences]
        if reasons:
            lines += ["ENVIRONMENT is production, but:", *(f"- {each}" for each in reasons)]
    if lines:
        raise SystemExit("\n".join(lines))
    return values


def _missing(schema: Schema, config: Mapping[str, Any], needs: Iterable[Need]) -> dict[str, str]:
    missing = {}
    for need in needs:
        name, condition = (need, None) if isinstance(need, str) else need
        section, _, key = name.partition(".")
        holder, last = (config.get(section) or {}, key) if key else (config, section)
        # The schema itself reports a section that is not a mapping.
        is_missing = isinstance(holder, Mapping) and not holder.get(last)
        if is_missing and (condition is None or config.get(condition)):
            missing[_variable(section, key)] = str(schema.fields[section].error_messages["required"])
    return missing


def _sentences(faults: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for section, messages in faults.items():
        if isinstance(messages, dict):
            yield from ((_variable(section, key), found[0]) for key, found in messages.items())
        else:
            yield section, messages[0]


def _variable(section: str, key: str) -> str:
    """The environment variable of a setting: BAKERY_DB_URI for DB_URIS.bakery."""
    return f"{key.upper()}_{section.removesuffix('S')}" if key else section


def amqp_address(config: Mapping[str, Any]) -> dict[str, Any]:
    """Kombu's arguments for a connection to the broker. With amqps:// its certificate and host name are verified.

    AMQP_SSL_CA: the file of the certificate authority; without it the system's authorities are trusted.
    """
    parts = urlsplit(config["AMQP_URI"])
    if parts.scheme != "amqps":
        return {"hostname": config["AMQP_URI"]}
    return {
        "hostname": config["AMQP_URI"],
        "ssl": {
            "cert_reqs": ssl.CERT_REQUIRED,
            "ca_certs": config.get("AMQP_SSL_CA"),
            "server_hostname": parts.hostname,
        },
    }
