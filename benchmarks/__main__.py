"""`make bench`, or python -m benchmarks [SCENARIO …]: measures a shop that it starts, and judges nothing."""

import os
import platform
import signal
import sys
import warnings

warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")  # docs/decisions/ says why we use it

from benchmarks import scenarios, tracing  # noqa: E402, F401
from benchmarks.load import BenchmarkFailed  # noqa: E402
from benchmarks.report import Report  # noqa: E402
from benchmarks.shop import SCENARIOS, running_shop  # noqa: E402
from nameko_reliable.testing.servers import CannotStart  # noqa: E402


def main(names):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the shop's folder is removed
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        sys.exit(f"forage: There is no scenario {' or '.join(unknown)}; there are {', '.join(SCENARIOS)}.")
    seconds = os.environ.get("BENCH_SECONDS") or "5"
    if not (seconds.isascii() and seconds.isdecimal() and 1 <= int(seconds) <= 60):
        sys.exit(f"forage: BENCH_SECONDS must be a number from 1 to 60; it is {seconds!r}.")
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, {seconds} s each")
    try:
        with running_shop() as shop:
            for name in names or SCENARIOS:
                SCENARIOS[name](shop, Report(shop, int(seconds)))
    except (CannotStart, BenchmarkFailed) as reason:
        sys.exit(f"forage: {reason}")
    except KeyboardInterrupt:
        sys.exit("forage: stopped")


if __name__ == "__main__":
    main(sys.argv[1:])
