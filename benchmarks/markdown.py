"""The tables of docs/performance.md: the results of a run in Markdown, beside its JSON file."""

from benchmarks import musts
from benchmarks.report import FLASK, PERCENTS


def save(path, results, **facts):
    """Write the tables beside the JSON file at `path`, and return their file."""
    tables = path.with_suffix(".md")
    tables.write_text("\n".join([*_head(**facts), *_musts(results), *_scenarios(results)]))
    return tables


def _head(machine, commit, seconds, scenarios, versions=None):
    command = f"BENCH_SECONDS={seconds} make bench"
    if scenarios:
        command += f' SCENARIOS="{" ".join(scenarios)}"'
    programs = ", ".join(f"{name} {version}" for name, version in (versions or {}).items())
    yield f"`{command}`, of the commit {commit or 'that is not known'}, on {machine['platform']} with"
    yield f"{machine['cores']} cores, Python {machine['python']}, {programs}. Load at the start:"
    yield f"{machine['load_at_start']:.1f}."
    yield ""


def _musts(results):
    values = [(must, must.measured(results)) for must in musts.MUSTS]
    known = [
        (must.work, f"{value:.1f}", f"{must.must:g}", f"{must.aim:g}", must.unit, _verdict(must, value))
        for must, value in values
        if value is not None
    ]
    if known:
        yield "### What must be reached"
        yield ""
        yield from _table(("work", "measured", "must", "aim", "unit", ""), known)


def _verdict(must, value):
    return "missed" if must.is_missed(value) else ""


def _scenarios(results):
    for scenario in dict.fromkeys(key.partition(": ")[0] for key in [*results.rows, *results.figures]):
        yield f"### {scenario}"
        yield ""
        rows, figures = _of(scenario, results.rows), _of(scenario, results.figures)
        flask = results.rows.get(FLASK)
        if rows:
            yield from _rows(rows, flask and flask["cpu_ms"]["all"])
        if figures:
            yield from _table(
                ("", "", ""), [(name, f"{each['value']:.2f}", each["unit"]) for name, each in figures.items()]
            )


def _of(scenario, found):
    """{name: value} of one scenario."""
    prefix = f"{scenario}: "
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


def _rows(rows, flask_ms):
    parts = [part for part in dict.fromkeys(part for row in rows.values() for part in row["cpu_ms"]) if part != "all"]
    heads = ("", "per s", *(f"p{percent} ms" for percent in PERCENTS), *parts, "CPU ms", "× Flask")

    def written(value, digits):
        return "" if value is None else f"{value:.{digits}f}"

    yield from _table(
        heads,
        [
            (
                name,
                written(row["per_second"], 1),
                *(written(row.get(f"p{percent}_ms"), 1) for percent in PERCENTS),
                *(written(row["cpu_ms"].get(part), 2) for part in parts),
                written(row["cpu_ms"]["all"], 2),
                written(row["cpu_ms"]["all"] / flask_ms if flask_ms else None, 1),
            )
            for name, row in rows.items()
        ],
    )


def _table(heads, lines):
    """The first column is text, the others are numbers."""
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for line in lines:
        yield "| " + " | ".join(line) + " |"
    yield ""
