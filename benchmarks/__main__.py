"""`make bench`, or python -m benchmarks [SCENARIO …]: measures a shop that it starts, beside code that is not ours.

BENCH_SECONDS: of each row. SOAK_MINUTES: of the scenario soak. COMPARE: the JSON file of an earlier run. PROFILE: a
scenario whose CPU is shown by library and by function. CHECK: fail if a must is missed by more than this factor.
"""

import os
import resource
import signal
import sys
import warnings
from contextlib import nullcontext

warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")  # docs/decisions/ says why we use it

# ruff: noqa: E402, I001
from benchmarks import floors, kit, processes, reads, orders, live, messages, tracing, big, growth, soak  # noqa: F401
from benchmarks import comparison, markdown, musts, profiling
from benchmarks.load import BenchmarkFailed
from benchmarks.report import Report, Results
from benchmarks.shop import SCENARIOS, chosen_scenarios, running_shop
from nameko_reliable.testing.servers import CannotStart


def main(names):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the shop's folder is removed
    try:
        seconds, check = seconds_from(os.environ.get("BENCH_SECONDS")), factor_from(os.environ.get("CHECK"))
        soak.minutes()
        run(names, seconds, check, os.environ.get("PROFILE"))
    except (CannotStart, BenchmarkFailed) as reason:
        sys.exit(f"forage: {reason}")
    except KeyboardInterrupt:
        sys.exit("forage: stopped")


def seconds_from(text):
    text = text or "5"
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 60):
        raise BenchmarkFailed(f"BENCH_SECONDS must be a number from 1 to 60; it is {text!r}.")
    return int(text)


def factor_from(text):
    """None: nothing is checked."""
    if not text:
        return None
    if not (text.isascii() and text.replace(".", "", 1).isdecimal() and float(text) > 0):
        raise BenchmarkFailed(f"CHECK must be a factor of the musts, such as 2; it is {text!r}.")
    return float(text)


def require_profile(name, names):
    """Raise BenchmarkFailed unless that scenario is among those that run, and can be profiled."""
    chosen = [scenario.name for scenario in chosen_scenarios(names) if scenario.needs_services]
    if name not in chosen:
        raise BenchmarkFailed(
            f"PROFILE must be a scenario of the shop that runs ({', '.join(chosen) or 'none does'}); it is {name!r}."
        )
    profiling.require()


def run(names, seconds, check, profile):
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise BenchmarkFailed(f"There is no scenario {' or '.join(unknown)}; there are {', '.join(SCENARIOS)}.")
    if profile:
        require_profile(profile, names)
    earlier = comparison.read(os.environ["COMPARE"]) if os.environ.get("COMPARE") else None
    allow_many_sockets()
    machine = comparison.machine()
    print(f"{machine['platform']}, Python {machine['python']}, {machine['cores']} cores, {seconds} s each")
    results, facts = (
        Results(),
        {"machine": machine, "commit": comparison.commit(), "seconds": seconds, "scenarios": names},
    )
    try:
        with running_shop() as shop:
            facts["versions"] = shop.versions()
            for scenario in chosen_scenarios(names):
                if scenario.needs_services:
                    shop.open()
                with profiling.profiled(shop) if scenario.name == profile else nullcontext():
                    scenario.run(shop, Report(shop, scenario.name, seconds, results))
    finally:
        # A scenario that fails loses none of the others' results.
        if results.rows or results.figures:
            musts.print_musts(results)
            if earlier:
                comparison.print_changes(earlier, results)
            path = comparison.save(results, **facts, profile=profile or None)
            tables = markdown.save(path, results, **facts)
            print(f"\nThe results are in {path}\nAs tables they are in {tables}", flush=True)
    faults = list(musts.faults(results, check)) if check else []
    if faults:
        raise BenchmarkFailed("\n".join([f"The run misses musts by more than {check:g} times:", *faults]))


def allow_many_sockets():
    """For this process and its children, as far as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main(sys.argv[1:])
