"""Reads rows as the views of the contracts, without models.

    PRODUCTS = ViewTable("products", ProductView())

    products = PRODUCTS.find(self.db.execute, "WHERE id = %(id)s::bigint", id=7)
    total, products = PRODUCTS.page(self.db.execute, ["is_active"], "price, id", limit=20, offset=0)

PostgreSQL writes each value as `View.write` does: times and money as text. Loading models and writing their attributes
would take several times as long. Statements are built once for each set of conditions, and prepared.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias

from marshmallow import fields

from contracts.types import JsonObject, Money, Time, View
from nameko_reliable.statements import Statement

# `execute` of a worker's database.
Execute: TypeAlias = Callable[..., Iterable[Sequence[Any]]]

TIME = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


class ViewTable:
    """A table with the columns of a view.

    expressions: SQL for the members of the view that are no column, or not as they are stored.
    All SQL is written in the code: values are parameters.
    """

    def __init__(self, name: str, view: View, **expressions: str) -> None:
        written = {column: _written(column, field) for column, field in view.fields.items()} | expressions
        self.name, self.members = name, tuple(written)
        self.columns = ", ".join(f"{expression} AS {column}" for column, expression in written.items())

    def find(self, execute: Execute, rest: str, **parameters: Any) -> list[JsonObject]:
        """The views of some rows. rest: of the statement, from WHERE on."""
        return self._views(execute(_select(self, rest), **parameters))

    def page(
        self,
        execute: Execute,
        conditions: Iterable[str],
        order: str,
        limit: int,
        offset: int,
        collected: str = "",
        total: str = "",
        **parameters: Any,
    ) -> tuple[int, list[JsonObject]]:
        """(the number of all rows that meet the conditions, the views of a page of them).

        order: of columns, the last one unique.
        total: a query for the number of all rows, where it is known without counting them.
        collected: the columns of the order, besides id. With them, all rows that meet the conditions are found first,
        and then counted and sorted. For conditions that are costly to check, which is then done once.
        """
        statement = _select_page(self, tuple(conditions), order, collected, total)
        rows = list(execute(statement, limit=limit, offset=offset, **parameters))
        # An empty page has one row with the total, and nulls.
        return rows[0][-1], self._views(row for row in rows if row[0] is not None)

    def _views(self, rows: Iterable[Sequence[Any]]) -> list[JsonObject]:
        # The rows of a page have the total at the end.
        return [dict(zip(self.members, row, strict=False)) for row in rows]


def list_of(view: View, table: str, condition: str) -> str:
    """SQL for the views of other rows, by id, as a list."""
    members = ", ".join(f"'{name}', {_written(name, field)}" for name, field in view.fields.items())
    rows = f"json_agg(json_build_object({members}) ORDER BY id)"
    return f"(SELECT coalesce({rows}, '[]') FROM {table} WHERE {condition})"  # noqa: S608


def pattern_of(part: str) -> str:
    """A pattern of LIKE for all texts with this part."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", part) + "%"


def _written(column: str, field: fields.Field[Any]) -> str:
    if isinstance(field, Time):
        return TIME.format(column)
    if isinstance(field, Money):
        return f"CAST({column} AS text)"
    return column


@cache
def _select(table: ViewTable, rest: str) -> Statement:
    return Statement(f"SELECT {table.columns} FROM {table.name} {rest}")  # noqa: S608


@cache
def _select_page(table: ViewTable, conditions: tuple[str, ...], order: str, collected: str, total: str) -> Statement:
    """First the ids of the page, which an index alone can answer: the rows before the page are not read.

    The ids are an array, because PostgreSQL expects an array to have few elements. It expects a subquery whose limit is
    a parameter to return a tenth of the table, and would read the whole table for the join.
    """
    first, matching = "", f"FROM {table.name}"
    if conditions:
        matching += f" WHERE {' AND '.join(conditions)}"
    if collected:
        first, matching = f"WITH matching AS MATERIALIZED (SELECT id, {collected} {matching})", "FROM matching"
    return Statement(f"""
{first}
SELECT {", ".join(table.members)}, ({total or f"SELECT count(*) {matching}"}) AS total
FROM (VALUES (1)) AS always (one) LEFT JOIN (
    SELECT {table.columns}, place
    FROM unnest(ARRAY(
        SELECT id {matching} ORDER BY {order} LIMIT %(limit)s::bigint OFFSET %(offset)s::bigint
    )) WITH ORDINALITY AS chosen (chosen_id, place)
    JOIN {table.name} ON id = chosen_id
) AS page ON true
ORDER BY place
""")  # noqa: S608
