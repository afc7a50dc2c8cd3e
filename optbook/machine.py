"""Is this machine ready for the chapters?"""

import importlib.metadata
import os
import platform
import re
import sys
import time
from pathlib import Path

import jax
import keras
import numpy as np

from optbook import _runtime, memory, presets

LOCK = Path(__file__).parents[1] / "requirements.lock"
PACKAGES = ("jax", "keras", "keras-hub", "matplotlib", "numpy", "tokenizers")


def locked_versions():
    """The versions that the lock file names, by package; empty where the package was installed without it."""
    if not LOCK.exists():
        return {}
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE))


def checklist():
    """What must hold for the chapters to run as printed: a dict from statement to bool, the same on every machine."""
    row = np.ones((1, 8), "int32")
    backbone = _tiny_backbone()
    hidden = np.asarray(backbone({"token_ids": row, "padding_mask": row}))
    exact = np.asarray(jax.numpy.dot(np.float32([[1 + 2**-12]]), np.float32([[1]])))[0, 0] == np.float32(1 + 2**-12)
    return {
        "Python is 3.11, 3.12, 3.13 or 3.14": (3, 11) <= sys.version_info[:2] <= (3, 14),
        "Keras runs on JAX": keras.backend.backend() == "jax",
        "TensorFlow is not loaded": "tensorflow" not in sys.modules,
        "float32 products are exact to float32": bool(exact),
        "compiled programs are kept between runs": _can_write(_runtime.cache_folder()),
        "a small OPT runs and its numbers are finite": bool(np.isfinite(hidden).all()),
        "the default preset fits the free memory": bool(memory.plan(presets.DEFAULT).fitting(memory.this_machine())),
    }


def _tiny_backbone():
    """A backbone of a few hundred numbers, to see that the machine runs one."""
    from optbook.backbone import OPTBackbone

    return OPTBackbone(
        vocabulary_size=8, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=8, max_sequence_length=8
    )


def _can_write(folder):
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return os.access(existing, os.W_OK)


def doctor():
    """Prints the checklist, a line each, and raises if a line is not true."""
    results = checklist()
    for statement, holds in results.items():
        print(f"{'yes' if holds else 'NO '}  {statement}")
    failed = [statement for statement, holds in results.items() if not holds]
    if failed:
        raise RuntimeError(f"this machine is not ready: it is not so that {failed[0]}. `optbook doctor` says more.")


def seconds(function, *arguments, repeats=7):
    """How long a call takes: the fastest of several, after one that is not counted and compiles.

    The fastest is what the machine can do; slower ones tell what else it was doing. JAX returns before it has computed,
    so the clock stops when the result is there.
    """
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return min(times)


def facts():
    """What this machine is, as (name, value) pairs for `optbook doctor`."""
    locked = locked_versions()
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        found = importlib.metadata.version(package)
        wanted = locked.get(package)
        yield package, found if wanted in (None, found) else f"{found} (the lock has {wanted})"
    yield "devices", ", ".join(f"{device.device_kind} ({device.platform})" for device in jax.devices())
    place = memory.this_machine()
    yield "memory", f"{memory.gigabytes(place.limit)} of the {'GPU' if place.gpu else 'main memory'} free"
    yield "compilation cache", str(_runtime.cache_folder())
