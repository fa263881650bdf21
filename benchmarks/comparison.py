"""The JSON file of a run, and what changed between two of them."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime

from benchmarks.load import BenchmarkFailed
from benchmarks.report import Results
from dev.settings import ROOT, local_folder

# Two runs on a quiet machine differ by less.
NOTABLE = 0.15
COLUMNS = ("CPU ms", "per s", "p50 ms", "p99 ms")


def machine():
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
    }


def commit():
    """The commit that is measured, `-dirty` with changes; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def save(results, **facts):
    """Write the results beside those of earlier runs. Returns the file."""
    now = datetime.now(UTC)
    folder = local_folder(os.environ) / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%dT%H%M%SZ}.json"
    content = {"at": now.isoformat(timespec="seconds"), **facts, "rows": results.rows, "figures": results.figures}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def read(path):
    """The Results of a file that `save` wrote. Raises BenchmarkFailed."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        rows = {key: _checked_row(row) for key, row in content["rows"].items()}
        figures = {
            key: {"value": float(each["value"]), "unit": each["unit"]} for key, each in content["figures"].items()
        }
    except OSError as error:
        raise BenchmarkFailed(f"COMPARE cannot be read: {error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkFailed(f"COMPARE must be a file that `make bench` wrote, and {path} is none.") from error
    return Results(rows, figures)


def _checked_row(row):
    float(row["per_second"])
    float(row["cpu_ms"]["all"])
    return row


def changes(before, after):
    """(name, [(before, after, is notable), …]) of each row and figure that both have. None where a value is missing."""
    for key in after.rows.keys() & before.rows.keys():
        yield (
            key,
            [_change(old, new) for old, new in zip(_values(before.rows[key]), _values(after.rows[key]), strict=True)],
        )
    for key in after.figures.keys() & before.figures.keys():
        yield key, [_change(before.figure(key), after.figure(key))]


def _values(row):
    return row["cpu_ms"]["all"], row["per_second"], row.get("p50_ms"), row.get("p99_ms")


def _change(old, new):
    if old is None or new is None:
        return None
    return old, new, abs(new - old) > NOTABLE * abs(old)


def print_changes(before, after):
    order = {key: number for number, key in enumerate([*after.rows, *after.figures])}
    lines = sorted(changes(before, after), key=lambda change: order[change[0]])
    if not lines:
        print("\nThe run of COMPARE has no row of this one.")
        return
    print(f"\nChanges, ! beyond {NOTABLE:.0%}\n{'':60} " + " ".join(f"{name:>26}" for name in COLUMNS))
    for key, values in lines:
        print(f"{key:60} " + " ".join(f"{_written(value):>26}" for value in values).rstrip())


def _written(change):
    if change is None:
        return "-"
    old, new, is_notable = change
    percent = f"{new / old - 1:+.0%}" if old else "-"
    return f"{old:.2f} → {new:.2f} {percent:>5}{'!' if is_notable else ' '}"
