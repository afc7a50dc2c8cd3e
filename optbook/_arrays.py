"""Host arrays that JAX on a CPU takes over as they are, without a copy: they start at a multiple of 64 bytes."""

import math
import mmap

import numpy as np

HUGE_PAGE = 2_000_000  # bytes, about; smaller arrays gain nothing from pages of this size


def fresh_zeros(shape, dtype):
    """Zeros in pages of their own, which take up memory only once touched, and give it back when the array goes.

    Arrays of ``np.zeros`` and ``np.empty`` do neither where they come out of memory that was used before.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):  # Linux: a fraction of the faults, so faster to fill
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype, count=math.prod(shape)).reshape(shape)
