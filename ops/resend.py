"""Sends events again, made from the tables: after queues were deleted with their messages.

    python -m ops.resend --since 2026-11-30T10:00Z
    python -m ops.resend --since 2026-11-30T10:00Z --service orders

They go into the outbox, and their service sends them when it runs. Each event has its first id, so handlers ignore
those that they have handled: an interrupted run can be repeated, and `--since` may be well before the loss.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from nameko_reliable.postgres import WRITABLE_HOST, database_url
from ops.migrate import database_uris

# The services with a module services/…_events.py, which builds their events from the tables.
SOURCES = ("orders", "users")
BATCH = 200


def parse_time(text: str) -> datetime:
    since: datetime | None
    try:
        since = datetime.fromisoformat(text)
    except ValueError:
        since = None
    if since is None or since.tzinfo is None:
        raise argparse.ArgumentTypeError(f"a time with its zone, like 2026-11-30T10:00Z, not {text!r}")
    return since


def resend(service: str, uri: str, since: datetime) -> int:
    """Put the service's events since then into its outbox. Returns their number."""
    models = importlib.import_module(f"services.{service}_models")
    events = importlib.import_module(f"services.{service}_events")
    number = 0
    with Session(create_engine(database_url(uri), connect_args=WRITABLE_HOST), expire_on_commit=False) as session:
        for event, key in events.events_since(session, since):
            session.add(models.OutboxEntry.of(event, key))
            number += 1
            if number % BATCH == 0:
                session.commit()
        session.commit()
    return number


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.resend", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--since", required=True, type=parse_time, help="a time with its zone")
    parser.add_argument("--service", choices=SOURCES, help="only the events of this service")
    wanted = parser.parse_args(arguments)
    for service, uri in database_uris(*([wanted.service] if wanted.service else SOURCES)).items():
        try:
            number = resend(service, uri, wanted.since)
        except DBAPIError as error:
            sys.exit(f"{service}: not finished. Repair this, and run it again: {error.orig}")
        print(f"{service}: {number} events are in the outbox", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
