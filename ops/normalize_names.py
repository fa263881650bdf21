"""Renames accounts and SKUs that look the same as older ones. Releases before 0.1.0 accepted them.

    python -m ops.normalize_names            # lists what it would rename
    python -m ops.normalize_names --apply

The oldest keeps the name, the others get their id after it: `fish-17`. It works on the databases of which USERS_DB_URI
and PRODUCTS_DB_URI are set, while services run. It commits in batches: the next run finishes an interrupted one.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import ColumnClause, ColumnElement, Connection, Row, column, create_engine, func, select, table, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.expression import TableClause

from contracts.names import normal_sku, normal_username, username_key, with_suffix
from contracts.products import MAX_SKU
from contracts.users import MAX_USERNAME
from nameko_reliable.postgres import WRITABLE_HOST, database_url
from ops.migrate import database_uris
from services.products_search import search_columns

BATCH = 500


@dataclass(frozen=True)
class NameColumn:
    """A column of names, with its column of keys, `<column>_key`.

    counters: the columns that an edit raises. index(connection, id): updates the search columns of a row.
    """

    table: TableClause
    column: str
    normal: Callable[[str], str]
    key: Callable[[str], str]
    max_length: int
    counters: tuple[str, ...] = ()
    index: Callable[[Connection, int], None] = lambda connection, row_id: None


def columns(*names: str) -> list[ColumnClause[Any]]:
    return [column(name) for name in ("id", "updated_at", *names)]


def index_product(connection: Connection, product_id: int) -> None:
    columns, this = PRODUCTS.c, PRODUCTS.c.id == product_id
    texts = select(columns.name, columns.sku, columns.category, columns.description).where(this)
    found_by = search_columns(*connection.execute(texts).one())
    connection.execute(update(PRODUCTS).where(this).values(search_version=columns.version, **found_by))


USERS = table("users", *columns("username", "username_key"))
SEARCHED = ("name", "category", "description", "search_text", "search_pieces", "search_version")
PRODUCTS = table("products", *columns("sku", "sku_key", "version", "revision", *SEARCHED))
NAMES = (
    NameColumn(USERS, "username", normal_username, username_key, MAX_USERNAME),
    NameColumn(PRODUCTS, "sku", normal_sku, normal_sku, MAX_SKU, ("version", "revision"), index_product),
)


class NameRepair:
    """Repairs the keys of a table's names, and renames clashing rows. The caller commits."""

    def __init__(self, connection: Connection, names: NameColumn) -> None:
        self.connection, self.names = connection, names
        columns = names.table.c
        self.id, self.name, self.key = columns.id, columns[names.column], columns[f"{names.column}_key"]
        self.rows = select(self.id, self.name.label("name"), self.key.label("key"))
        self.renamed = 0

    def next_batch(self, last: int) -> int | None:
        """Repair the next rows by id. Returns the last id, or None at the end."""
        rows = self.connection.execute(self.rows.where(self.id > last).order_by(self.id).limit(BATCH)).all()
        for row in rows:
            if row.key != self.names.key(row.name):
                self.repair(row.id)
        return rows[-1].id if rows else None

    def repair(self, row_id: int) -> None:
        row = self.lock(self.id == row_id)
        key = row and self.names.key(row.name)
        if row is None or row.key == key:
            return
        holder = self.lock(self.key == key)
        if holder is not None and self.names.key(holder.name) != key:
            # A release before 0.1.0 changed the name but not the key.
            self.update(holder.id, {self.key: None})
            self.update(row.id, {self.key: key})
            self.repair(holder.id)
        elif holder is None:
            self.update(row.id, {self.key: key})
        elif holder.id < row.id:
            self.rename(row, holder)
        else:
            self.rename(holder, row)
            self.update(row.id, {self.key: key})

    def lock(self, condition: ColumnElement[bool]) -> Row[Any] | None:
        return self.connection.execute(self.rows.where(condition).with_for_update()).first()

    def rename(self, row: Row[Any], older: Row[Any]) -> None:
        columns = self.names.table.c
        edit = {columns.updated_at: func.now(), **{columns[each]: columns[each] + 1 for each in self.names.counters}}
        for number in count(1):
            suffix = row.id if number == 1 else f"{row.id}-{number}"
            name = with_suffix(self.names.normal(row.name), suffix, self.names.max_length)
            try:
                with self.connection.begin_nested():
                    self.update(row.id, {self.name: name, self.key: self.names.key(name), **edit})
                break
            except IntegrityError:
                continue
        self.names.index(self.connection, row.id)
        self.renamed += 1
        print(f"{self.names.table.name} {row.id}: {row.name!r} becomes {name!r}, as {older.id} has {older.name!r}")

    def update(self, row_id: int, values: Mapping[Any, Any]) -> None:
        self.connection.execute(update(self.names.table).where(self.id == row_id).values(values))


def repair_all(names: NameColumn, uri: str, apply: bool) -> None:
    engine = create_engine(database_url(uri), poolclass=NullPool, connect_args=WRITABLE_HOST)
    with engine.connect() as connection:
        repair = NameRepair(connection, names)
        last: int | None = 0
        while last is not None and (last := repair.next_batch(last)) is not None:
            if apply:
                connection.commit()
        # Without apply nothing is committed.
    print(f"{names.table.name}: {repair.renamed} {'renamed' if apply else 'to rename: run it with --apply'}")


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--apply", action="store_true", help="rename them")
    apply = options.parse_args().apply
    services = [names.table.name for names in NAMES]
    chosen = [service for service in services if os.environ.get(f"{service.upper()}_DB_URI")]
    # If none is set, database_uris reports both as missing.
    uris = database_uris(*(chosen or services))
    for names in NAMES:
        if names.table.name in uris:
            repair_all(names, uris[names.table.name], apply)


if __name__ == "__main__":
    main()
