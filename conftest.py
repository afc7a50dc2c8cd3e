"""For nbval: a kernel that was killed is reported at once and as such, not as a time-out of its cell."""

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
