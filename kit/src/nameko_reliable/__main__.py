"""The kit's command line: python -m nameko_reliable queues move --help"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import yaml
from marshmallow import INCLUDE, Schema, ValidationError, fields, validate
from nameko.cli.main import setup_yaml_parser
from nameko.cli.run import import_service
from nameko.exceptions import CommandError, ConfigurationError

from nameko_reliable.moving import move_queues
from nameko_reliable.settings import checked

BAD_ADDRESS = (
    "must be the broker's address, like amqp://user:password@localhost:5672// (percent-encode user and password)."
)
BAD_TYPE = "must be classic or quorum."


def check_address(text: str) -> None:
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("amqp", "amqps", "pyamqp") and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValidationError(BAD_ADDRESS)


class QueueSettings(Schema):
    class Meta:
        unknown = INCLUDE

    AMQP_URI = fields.String(
        required=True,
        validate=check_address,
        error_messages=dict.fromkeys(("required", "null", "invalid"), BAD_ADDRESS),
    )
    EVENT_QUEUE_TYPE = fields.String(
        allow_none=True,
        validate=validate.OneOf(("", "classic", "quorum"), error=BAD_TYPE),
        error_messages={"invalid": BAD_TYPE},
    )


def read_config(path: str) -> dict[str, Any]:
    """The settings that `nameko run --config` reads from the file."""
    setup_yaml_parser()
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{path} can't be read: {error}")
    except (yaml.YAMLError, ConfigurationError):
        # The error's own message may quote values from the environment.
        sys.exit(f"{path} is not YAML, or the value of a variable in it is not.")
    if not isinstance(config, dict):
        sys.exit(f"{path} has no settings.")
    return config


def classes_in(modules: Iterable[str]) -> Iterator[type]:
    """The service classes that `nameko run` would start."""
    for module in modules:
        try:
            yield from import_service(module)
        except (CommandError, ImportError) as error:
            sys.exit(f"{module}: {error}")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m nameko_reliable", description="Commands for operators.")
    subjects = parser.add_subparsers(required=True, metavar="queues")
    verbs = subjects.add_parser("queues", help="the queues of services").add_subparsers(required=True, metavar="move")
    move = verbs.add_parser(
        "move",
        help="replace queues that have other arguments than the kit declares",
        description="Replaces the queues of services that have other arguments than the kit declares, and keeps their "
        "messages. It can be interrupted and run again at any time.",
    )
    move.add_argument("--config", required=True, help="the services' configuration, as for `nameko run`")
    move.add_argument("services", nargs="+", metavar="module[:Class]", help="the services, as for `nameko run`")
    chosen = parser.parse_args(arguments)
    config = checked(QueueSettings(), read_config(chosen.config))
    try:
        move_queues(list(classes_in(chosen.services)), config)
    except ConfigurationError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
