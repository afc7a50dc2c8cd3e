"""Memory for arrays that JAX takes over on a CPU without a copy."""

import math

import numpy as np

ALIGNMENT = 64  # bytes; XLA copies an array that starts anywhere else


def aligned_empty(shape, dtype):
    """A new C-contiguous array that starts at a 64-byte aligned address, its numbers not set yet.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy dtype, type or name

    Returns
    -------
    numpy.ndarray
        Of ``shape`` and ``dtype``, writeable; nothing else refers to its memory.
    """
    return _aligned(np.empty, shape, dtype)


def aligned_zeros(shape, dtype):
    """The same filled with zeros: memory that the operating system hands out only when it is first touched."""
    return _aligned(np.zeros, shape, dtype)


def _aligned(allocate, shape, dtype):
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    memory = allocate(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes].view(dtype).reshape(shape)
