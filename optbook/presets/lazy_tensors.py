"""Tensors that stay in their file until they are asked for."""

import dataclasses
import math
import os
import zlib
from pathlib import Path

import numpy as np

from optbook._arrays import fresh_zeros
from optbook._files import GIT_LFS, check_fetched

MOST_AXES = 64  # NumPy's limit


class WeightFile:
    """A file of weights, open for reading any range of its bytes into the caller's memory.

    It is read and never mapped: the pages of a mapped file count as this process's memory while the mapping is open.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.file = open(self.path, "rb")  # noqa: SIM115 (__exit__ closes it)
        self.size = os.fstat(self.file.fileno()).st_size

    def __enter__(self):
        try:
            check_fetched(self.path, self.read(min(self.size, len(GIT_LFS)), 0))
        except ValueError:
            self.file.close()
            raise
        return self

    def __exit__(self, *error):
        self.file.close()

    def read_into(self, array, offset):
        """Fills a C-contiguous array with the bytes that start at ``offset``; threads may do so at once."""
        missing = array.reshape(-1).view(np.uint8)
        while missing.size:
            count = os.preadv(self.file.fileno(), [missing], offset)  # of 2 GB at most
            if not count:
                raise ValueError(f"{self.path} is cut short: {missing.size} bytes are missing; fetch it again.")
            missing, offset = missing[count:], offset + count

    def read(self, size, offset):
        """The ``size`` bytes that start at ``offset``."""
        content = np.empty(size, np.uint8)
        self.read_into(content, offset)
        return content.tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of Hugging Face's weight files, not yet read.

    Attributes
    ----------
    source : WeightFile
    offset : int
        Where in the file its first number starts, in bytes.
    dtype : numpy.dtype
        As stored.
    shape : tuple of int
    strides : tuple of int, optional
        How many numbers the next index of each axis lies further on; C order when left out.
    checksum : int
        CRC-32 of its bytes where the file tells it, else 0.

    Raises
    ------
    ValueError
        When it would be larger than its file, as an axis of stride 0 can make it.
    """

    source: WeightFile
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    checksum: int = 0

    def __post_init__(self):
        if max((self.nbytes, *self.shape)) > self.source.size:
            raise ValueError("it has a tensor that would be larger than the whole file.")

    @property
    def file(self):
        """Name of its file, without the folder."""
        return self.source.path.name

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def in_order(self):
        """Whether its numbers follow each other in C order."""
        if self.strides is None:
            return True
        expected = 1
        for size, stride in zip(self.shape[::-1], self.strides[::-1]):
            if size > 1 and stride != expected:  # the stride of an axis with a single index means nothing
                return False
            expected *= size
        return True

    @property
    def span(self):
        """How many numbers lie in the file from its first to its last."""
        if self.strides is None or 0 in self.shape:
            return math.prod(self.shape)
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))

    def read(self):
        """A new C-contiguous array of ``shape`` and ``dtype`` that starts at a 64-byte aligned address.

        Raises
        ------
        ValueError
            When the file ends too early or the checksum does not fit.
        """
        numbers = fresh_zeros((self.span,), self.dtype)
        self.source.read_into(numbers, self.offset)
        content = numbers.view(np.uint8)
        if self.checksum and zlib.crc32(content) != self.checksum:
            raise ValueError(f"{self.source.path} is damaged: a tensor does not have its checksum; fetch it again.")
        if self.in_order:
            return numbers.reshape(self.shape)
        steps = [stride * self.dtype.itemsize if size > 1 else 0 for size, stride in zip(self.shape, self.strides)]
        ordered = fresh_zeros(self.shape, self.dtype)
        ordered[...] = np.ndarray(self.shape, self.dtype, content, strides=steps)
        return ordered
