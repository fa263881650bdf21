"""The kit's command line: python -m nameko_reliable queues move --help"""

import argparse
import sys
from urllib.parse import urlsplit

import yaml
from marshmallow import INCLUDE, Schema, ValidationError, fields, validate
from nameko.cli.main import setup_yaml_parser
from nameko.cli.run import import_service
from nameko.exceptions import CommandError, ConfigurationError

from nameko_reliable.moving import move_queues
from nameko_reliable.settings import checked


def is_address(text):
    try:
        parts = urlsplit(text)
        is_right = parts.scheme in ("amqp", "amqps", "pyamqp") and parts.hostname and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        raise ValidationError(ADDRESS)


ADDRESS = "must be the broker's address, like amqp://user:password@localhost:5672// (percent-encode user and password)."
TYPE = "must be classic or quorum."


class QueueSettings(Schema):
    class Meta:
        unknown = INCLUDE

    AMQP_URI = fields.String(
        required=True, validate=is_address, error_messages=dict.fromkeys(("required", "null", "invalid"), ADDRESS)
    )
    EVENT_QUEUE_TYPE = fields.String(
        allow_none=True,
        validate=validate.OneOf(("", "classic", "quorum"), error=TYPE),
        error_messages={"invalid": TYPE},
    )


def read_config(path):
    """What `nameko run --config` makes of the file."""
    setup_yaml_parser()
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{path} can't be read: {error}")
    except (yaml.YAMLError, ConfigurationError):
        # Their messages may quote values from the environment.
        sys.exit(f"{path} is not YAML, or a variable that it names has a value that is not.")
    if not isinstance(config, dict):
        sys.exit(f"{path} has no settings.")
    return config


def classes_in(modules):
    """The service classes that `nameko run` would start."""
    for module in modules:
        try:
            yield from import_service(module)
        except (CommandError, ImportError) as error:
            sys.exit(f"{module}: {error}")


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m nameko_reliable", description="Commands for operators.")
    subjects = parser.add_subparsers(required=True, metavar="queues")
    verbs = subjects.add_parser("queues", help="the queues of services").add_subparsers(required=True, metavar="move")
    move = verbs.add_parser(
        "move",
        help="give queues the arguments that the kit declares them with",
        description="Gives the queues of services the arguments that the kit declares them with, and keeps the "
        "messages in them. It may be broken off, and run again, at any time.",
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
