"""Timing in the chapters: the first call compiles and does not count."""

import numpy as np

from optbook import machine


def test_seconds_counts_the_fastest_call_after_the_first(monkeypatch):
    clock, calls = [0.0], []

    def function(argument):
        calls.append(argument)
        clock[0] += {1: 50, 3: 2}.get(len(calls), 5)  # the first compiles, the third is the fastest
        return np.zeros(1)

    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])
    assert machine.seconds(function, "x", repeats=3) == 2 and calls == ["x"] * 4
