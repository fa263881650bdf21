"""nameko_reliable.timers: a method that runs at an interval, independent of the wall clock."""

import time

from nameko_reliable.testing.waiting import wait_for
from nameko_reliable.timers import timer


def test_a_timer_keeps_running_when_the_wall_clock_is_set_back(run_service, monkeypatch):
    ticks = []

    class Bakery:
        name = "bakery"

        @timer(interval=0.05)
        def look_into_the_oven(self):
            ticks.append(time.monotonic())

    run_service(Bakery)
    wait_for(lambda: len(ticks) >= 2)

    an_hour_ago = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: an_hour_ago)

    number = len(ticks)
    wait_for(lambda: len(ticks) >= number + 3)


def test_an_eager_timer_runs_at_once_and_any_other_after_its_interval(run_service):
    ticks = []

    class Bakery:
        name = "bakery"

        @timer(interval=3600)
        def look_later(self):
            ticks.append("later")

        @timer(interval=3600, eager=True)
        def look_at_once(self):
            ticks.append("at once")

    container = run_service(Bakery)

    wait_for(lambda: ticks == ["at once"])
    container.stop()
    assert ticks == ["at once"]
