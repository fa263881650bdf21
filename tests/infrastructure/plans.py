"""How PostgreSQL runs the statements of services/reading.py on large tables."""

from contextlib import contextmanager

from sqlalchemy import create_engine


@contextmanager
def filled_database(uri, statement, parameters=None):
    """A connection in autocommit, after the statement that fills the tables, with fresh statistics."""
    engine = create_engine(uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        # Else VACUUM may not see yet that the rows are committed, and PostgreSQL would have to look at the rows
        # themselves where an index is enough.
        connection.exec_driver_sql("SET synchronous_commit = on")
        connection.exec_driver_sql(statement, parameters)
        connection.exec_driver_sql("VACUUM ANALYZE")
        yield connection
    engine.dispose()


def explaining(connection, prepared=True):
    """An `execute` for functions that read a page: in place of the total they return the plan.

    prepared: as a service runs statements by default, else as with PREPARED_STATEMENTS=0.
    """

    def execute(statement, **parameters):
        if prepared:
            connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
            connection.exec_driver_sql(statement.prepare)
        question = f"EXPLAIN (ANALYZE) {statement.execute if prepared else statement.plain}"
        return [(None, "\n".join(connection.exec_driver_sql(question, parameters).scalars()))]

    return execute


def rows_read(connection, statement, **parameters):
    """How many rows of tables a prepared statement reads, with those that it then leaves out."""
    connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
    connection.exec_driver_sql(statement.prepare)
    explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.execute}", parameters)
    [answer] = explained.scalar_one()
    connection.exec_driver_sql(f"DEALLOCATE {statement.name}")
    return sum(_rows_of(node) for node in _nodes(answer["Plan"]) if "Relation Name" in node)


def _nodes(node):
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _rows_of(node):
    removed = sum(count for name, count in node.items() if name.startswith("Rows Removed by"))
    return (node["Actual Rows"] + removed) * node["Actual Loops"]
