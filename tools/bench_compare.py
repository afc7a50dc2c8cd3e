"""What `optbook compare` adds to the runs themselves, in medians: two kernels against one, overhead, resuming.

    make bench-compare
    make bench-compare SWEEP="notebooks/11_preset_report.ipynb --set seed=1,2,3,4,5,6,7,8,9,10,11,12"

The first form runs a notebook of its own, which counts for a while on one thread. A quiet machine with two cores or
more is needed.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import papermill
from rich.console import Console
from rich.table import Table

from optbook import compare
from optbook.compare._record import read_notebook
from optbook.compare._values import from_command_line, product

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sweeps import write_notebook

REPEATS = 3  # of whole sweeps
PAIRS = 9  # of a single run, bare and in a sweep
RESUMES = 5
COUNT = "total = 0\nfor i in range(number + 40_000_000):\n    total += i * i % 7"
RECORD = "from optbook.compare import record\nrecord(total=total)"


def seconds(function, *arguments, **named):
    begun = time.perf_counter()
    function(*arguments, **named)
    return time.perf_counter() - begun


def command(arguments, folder, jobs):
    """The command line in a process of its own, as people use it; its start counts."""
    optbook = Path(sys.executable).parent / "optbook"
    subprocess.run(
        [optbook, "compare", *arguments, "--out", folder, "--jobs", str(jobs)], check=True, capture_output=True
    )


def overhead(notebook, values, folder):
    """Ratios of one run in a sweep of its own to the same run by bare papermill, one right after the other."""
    ratios = []
    for index, parameters in enumerate(product(values, read_notebook(notebook), notebook)[:PAIRS]):
        bare = seconds(
            papermill.execute_notebook,
            notebook,
            folder / f"bare {index}.ipynb",
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=notebook.parent,
        )
        one = {name: [value] for name, value in parameters.items()}
        ratios.append(seconds(compare.sweep, notebook, one, folder / "swept") / bare)
    return ratios


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = sys.argv[1:] or [str(write_notebook(folder / "count.ipynb", COUNT, RECORD)), "--set"]
        if len(arguments) == 2:
            arguments.append("number=" + ",".join(map(str, range(12))))
        notebook = Path(arguments[0]).resolve()
        settings = [setting for flag, setting in zip(arguments[1::2], arguments[2::2]) if flag == "--set"]
        values = from_command_line(settings)
        total = len(product(values, read_notebook(notebook), notebook))
        times = {1: [], 2: []}
        for repeat in range(REPEATS):
            for jobs in times:
                times[jobs].append(seconds(command, arguments, folder / f"{jobs} {repeat}", jobs))
        resumed = [seconds(command, arguments, folder / "2 0", 2) for _ in range(RESUMES)]
        compare.sweep(notebook, {key: [several[0]] for key, several in values.items()}, folder / "warm")
        ratios = overhead(notebook, values, folder)
    one, two = (statistics.median(several) for several in times.values())
    table = Table(
        "what", "median", "aim", "all", title=f"optbook compare {notebook.name}: {total} runs, {os.cpu_count()} cores"
    )
    table.add_row("one kernel at a time", f"{one:.1f} s", "", listed(times[1]))
    table.add_row("two", f"{two:.1f} s = {one / two:.2f} × as fast", "≥ 1.70", listed(times[2]))
    added = statistics.median(ratios) - 1
    table.add_row("a run, over bare papermill", f"{added:+.1%}", "≤ 5 %", listed([100 * (r - 1) for r in ratios], "%"))
    table.add_row("resuming the finished sweep", f"{statistics.median(resumed):.2f} s", "< 3 s", listed(resumed))
    Console(width=120).print(table)


def listed(numbers, unit="s"):
    return " ".join(f"{number:.1f}" for number in numbers) + f" {unit}"


if __name__ == "__main__":
    main()
