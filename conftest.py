"""For nbval: a killed kernel is reported at once and as such, not as a time-out; each kernel's memory has a limit."""

import os
import time
from queue import Empty

import pytest

try:
    from nbval.kernel import RunningKernel
except ImportError:  # the unit tests run without nbval
    RunningKernel = None
else:
    wait_for_message = RunningKernel.get_message


def _get_message(self, stream, timeout=None):
    """Waits in slices of a second and looks after each whether the kernel is alive."""
    deadline = None if timeout is None else time.monotonic() + float(timeout)
    while True:
        left = 1.0 if deadline is None else min(1.0, max(deadline - time.monotonic(), 0.01))
        try:
            return wait_for_message(self, stream, timeout=left)
        except Empty:
            if not self.is_alive():
                pytest.fail("the kernel was killed while this cell ran (out of memory?)", pytrace=False)
            if deadline is not None and time.monotonic() >= deadline:
                raise


if RunningKernel is not None:
    RunningKernel.get_message = _get_message


def pytest_collectstart(collector):
    """Of a record (optbook.compare.record) the text is compared, in which ≈ marks what was measured."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("application/vnd.optbook.report+json",)


MAX_MB = 1500  # Binder gives a reader 2 GB, and JupyterLab takes its part of them
PEAK = "__import__('resource').getrusage(0).ru_maxrss * (1 if __import__('sys').platform == 'darwin' else 1024)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """After the last cell of a notebook: the most resident memory that its kernel had goes into the report."""
    kernel = getattr(item.parent, "kernel", None)
    is_last = nextitem is None or nextitem.parent is not item.parent
    if not (is_last and kernel and kernel.is_alive()):
        return (yield)
    answer = kernel.kc.execute("", silent=True, user_expressions={"peak": PEAK}, reply=True, timeout=30)["content"]
    peak_mb = int(answer["user_expressions"]["peak"]["data"]["text/plain"]) / 1e6
    item.user_properties.append(("kernel_peak_mb", peak_mb))
    yield
    if peak_mb > MAX_MB and not os.environ.get("JAX_PLATFORMS", "").startswith("cuda"):  # no place of Binder's
        pytest.fail(f"the notebook's kernel reached {peak_mb:.0f} MB, more than {MAX_MB}", pytrace=False)


def pytest_terminal_summary(terminalreporter):
    reports = [*terminalreporter.getreports(""), *terminalreporter.getreports("error")]
    peaks = {report.fspath: dict(getattr(report, "user_properties", ())).get("kernel_peak_mb") for report in reports}
    for path, peak_mb in sorted(peaks.items()):
        if peak_mb:
            terminalreporter.write_line(f"{path}: the kernel reached {peak_mb:.0f} MB")
