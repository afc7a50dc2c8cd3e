"""Host arrays that JAX on a CPU takes over as they are, without a copy: they start at a multiple of 64 bytes."""

import mmap

import numpy as np

ALIGNMENT = 64  # bytes; XLA copies an array that starts elsewhere


def aligned_empty(shape, dtype):
    """``np.empty`` at an aligned address."""
    dtype = np.dtype(dtype)
    size = _bytes(shape, dtype)
    memory = np.empty(size + ALIGNMENT, "uint8")
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def untouched_zeros(shape, dtype):
    """Zeros at an aligned address that take up no memory until they are read or written, page by page."""
    dtype = np.dtype(dtype)
    pages = mmap.mmap(-1, max(1, _bytes(shape, dtype)))  # np.zeros clears recycled memory, and so touches it
    return np.frombuffer(pages, dtype, count=int(np.prod(shape))).reshape(shape)


def _bytes(shape, dtype):
    return int(np.prod(shape, dtype="int64")) * dtype.itemsize
